"""nginx of Debian. It speaks HTTP/1.1 to whatever it proxies."""

import re
import subprocess

from lib.ground import Pair


class Nginx:
    """One worker each, upstream connections kept, nothing buffered."""

    scenarios = None
    name = "nginx"
    title = "nginx"

    def version(self, ground):
        """As it says itself, on standard error."""
        said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, timeout=10, check=True).stderr
        return re.search(r"nginx/(\S+)", said)[1]

    def start(self, ground, backend):
        """Starts both sides."""
        listen, mesh, svids = ground.address(), ground.address(), ground.svids
        sides = {
            "b": (SERVER_TLS.format(listen=mesh, svids=svids), backend, "http", ""),
            "a": (f"listen {listen} backlog=4096;", mesh, "https", CLIENT_TLS.format(svids=svids)),
        }
        started = {}
        for side, (door, to, scheme, tls) in sides.items():
            directory = ground.directory / self.name / side
            directory.mkdir(parents=True)
            text = CONFIG.format(door=door, to=to, scheme=scheme, tls=tls, directory=directory)
            path = ground.config(self.name, f"{side}.conf", text)
            started[side] = ground.sidecar(f"{self.name}-{side}", ["nginx", "-p", directory, "-c", path])
        return Pair(a=started["a"], b=started["b"], listen=listen, mesh=mesh, tls=ground.client_tls)


CONFIG = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/error.log error;
events {{ worker_connections 10000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    upstream out {{
        server {to};
        keepalive 1024;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        {door}
        location / {{
            proxy_pass {scheme}://out;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 1h;
            proxy_temp_path {directory}/proxy;
            {tls}
        }}
    }}
}}
"""

SERVER_TLS = """listen {listen} ssl backlog=4096;
        ssl_protocols TLSv1.3;
        ssl_certificate {svids}/server.pem;
        ssl_certificate_key {svids}/server.key;
        ssl_client_certificate {svids}/ca.pem;
        ssl_verify_client on;
        ssl_session_cache shared:sessions:10m;"""

CLIENT_TLS = """proxy_ssl_protocols TLSv1.3;
            proxy_ssl_certificate {svids}/client.pem;
            proxy_ssl_certificate_key {svids}/client.key;
            proxy_ssl_trusted_certificate {svids}/ca.pem;
            proxy_ssl_verify on;
            proxy_ssl_name server.bench.example;"""
