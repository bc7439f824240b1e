floor h1 --side a --listen 127.0.0.1:22945 --to 127.0.0.1:22946 --cert /DIRECTORY/svids/client.pem --key /DIRECTORY/svids/client.key --ca /DIRECTORY/svids/ca.pem --buffer 8k
