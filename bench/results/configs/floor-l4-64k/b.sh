floor l4 --side b --listen 127.0.0.1:22968 --to 127.0.0.1:22308 --cert /DIRECTORY/svids/server.pem --key /DIRECTORY/svids/server.key --ca /DIRECTORY/svids/ca.pem --buffer 64k
