floor h2 --side a --listen 127.0.0.1:22963 --to 127.0.0.1:22964 --cert /DIRECTORY/svids/client.pem --key /DIRECTORY/svids/client.key --ca /DIRECTORY/svids/ca.pem --buffer 8k
