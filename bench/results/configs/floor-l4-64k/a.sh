floor l4 --side a --listen 127.0.0.1:22967 --to 127.0.0.1:22968 --cert /DIRECTORY/svids/client.pem --key /DIRECTORY/svids/client.key --ca /DIRECTORY/svids/ca.pem --buffer 64k
