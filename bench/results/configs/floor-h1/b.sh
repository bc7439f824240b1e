floor h1 --side b --listen 127.0.0.1:22946 --to 127.0.0.1:22307 --cert /DIRECTORY/svids/server.pem --key /DIRECTORY/svids/server.key --ca /DIRECTORY/svids/ca.pem --buffer 8k
