floor l4 --side a --listen 127.0.0.1:22909 --to 127.0.0.1:22910 --cert /DIRECTORY/svids/client.pem --key /DIRECTORY/svids/client.key --ca /DIRECTORY/svids/ca.pem --buffer 8k
