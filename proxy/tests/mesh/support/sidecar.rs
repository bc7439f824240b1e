//! Sidecars, alone and in pairs.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use countersign_identity::tls::Alpn;
use countersign_identity::{Bundle, Bundles, ClientTls, Identity, SpiffeId, Svid, TrustDomain};
use countersign_proxy::{Config, IdentityFrom, ProxyError, Succession, Surroundings, run};
use countersign_runtime::telemetry::Metrics;
use countersign_runtime::{Lifecycle, Workers};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pki::Authority;
use super::workload_api::WorkloadApi;
use super::{ALLOW, CLIENT, SERVER, client, free_address, soon, until};

pub(crate) struct Sidecar {
    pub(crate) admin: SocketAddr,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) config: watch::Sender<Arc<Config>>,
    pub(crate) running: Option<JoinHandle<Result<(), ProxyError>>>,
}

/// A name to connect by: sidecars are known by their SPIFFE IDs alone.
pub(crate) fn any_name() -> ServerName<'static> {
    ServerName::try_from("sidecar.test").unwrap()
}

/// A caller's sidecar and a called one's, before the app at `app`.
pub(crate) struct Pair {
    pub(crate) authority: Authority,
    pub(crate) client: Sidecar,
    pub(crate) client_api: WorkloadApi,
    pub(crate) server: Sidecar,
    pub(crate) server_api: WorkloadApi,
    /// Where the caller's app connects.
    pub(crate) entrance: SocketAddr,
    /// Where the called sidecar listens for the mesh.
    pub(crate) inbound: SocketAddr,
    /// The name of both listeners.
    pub(crate) name: String,
    /// The configuration of the client's sidecar, without the admin endpoint.
    pub(crate) client_config: String,
    /// That of the server's.
    pub(crate) server_config: String,
}

/// The metrics of this test process; every sidecar of it records into them.
pub(crate) fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| countersign_runtime::telemetry::metrics().unwrap()).clone()
}

/// The value of the metric whose line begins with `name` and holds all of `labels`; 0 if there is none.
pub(crate) fn metric(name: &str, labels: &[&str]) -> f64 {
    let text = metrics().render();
    let fits = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
    text.lines().filter(fits).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

pub(crate) fn config(yaml: &str) -> Arc<Config> {
    let document = countersign_config::Document::parse("sidecar.yaml", yaml).unwrap();
    let domain = TrustDomain::new("example.org").unwrap();
    Arc::new(document.decode(|root| Config::read(&root.table()?, &domain)).unwrap())
}

impl Sidecar {
    pub(crate) fn start(yaml: &str, api: &WorkloadApi) -> Self {
        Self::start_from(yaml, IdentityFrom::WorkloadApi(api.endpoint()))
    }

    /// One whose identity comes from elsewhere.
    pub(crate) fn start_from(yaml: &str, identity: IdentityFrom) -> Self {
        Self::start_with(yaml, identity, Workers::on(&Handle::current()))
    }

    /// One whose traffic is carried by threads of its own.
    pub(crate) fn start_with(yaml: &str, identity: IdentityFrom, workers: Workers) -> Self {
        let admin = free_address();
        let (config, updates) = watch::channel(config(&format!("{yaml}admin: {{ listen: '{admin}' }}\n")));
        let lifecycle = Lifecycle::new();
        let surroundings = Surroundings {
            identity,
            metrics: metrics(),
            lifecycle: lifecycle.clone(),
            workers,
            ready: Vec::new(),
            succession: Succession::none(),
            app: None,
        };
        let running = Some(tokio::spawn(run(updates, surroundings)));
        Self { admin, lifecycle, config, running }
    }

    /// Takes up another configuration.
    pub(crate) fn reload(&self, yaml: &str) {
        self.config.send_replace(config(&format!("{yaml}admin: {{ listen: '{}' }}\n", self.admin)));
    }

    /// What `/ready` says.
    pub(crate) async fn readiness(&self) -> (u16, String) {
        client::get(self.admin, "/ready").await
    }

    pub(crate) async fn ready(&self) {
        until("the sidecar is ready", || async {
            assert!(!self.running.as_ref().is_some_and(JoinHandle::is_finished), "it ended: is an address taken?");
            matches!(client::try_get(self.admin, "/ready").await, Some((200, _)))
        })
        .await;
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

impl Pair {
    /// A pair that is ready, with the policy [`ALLOW`].
    pub(crate) async fn start(protocol: &str, app: SocketAddr) -> Self {
        Self::start_with(protocol, app, "").await
    }

    /// A pair that is ready, with more lines in both configurations.
    pub(crate) async fn start_with(protocol: &str, app: SocketAddr, more: &str) -> Self {
        let here = Workers::on(&Handle::current());
        Self::start_on([&here, &here], protocol, app, more).await
    }

    /// As [`Pair::start_with`]; who carries the traffic of the outbound side, and of the inbound one.
    pub(crate) async fn start_on(workers: [&Workers; 2], protocol: &str, app: SocketAddr, more: &str) -> Self {
        Self::start_whole(workers, protocol, app, ["", ""], more).await
    }

    /// A pair that is ready, with more keys of the outbound listener, and of the inbound one.
    pub(crate) async fn start_keyed(protocol: &str, app: SocketAddr, keys: [&str; 2]) -> Self {
        let here = Workers::on(&Handle::current());
        Self::start_whole([&here, &here], protocol, app, keys, "").await
    }

    async fn start_whole(workers: [&Workers; 2], protocol: &str, app: SocketAddr, keys: [&str; 2], more: &str) -> Self {
        let [outbound, inbound_keys] =
            keys.map(|keys| if keys.is_empty() { String::new() } else { format!(", {keys}") });
        let authority = Authority::new();
        let (client_api, server_api) = (WorkloadApi::new(), WorkloadApi::new());
        client_api.identity(&authority.issue(CLIENT), &[&authority]);
        server_api.identity(&authority.issue(SERVER), &[&authority]);
        client_api.policy(ALLOW);
        server_api.policy(ALLOW);
        let (entrance, inbound) = (free_address(), free_address());
        // Unique, for metrics are one to the test process.
        let name = format!("edge-{}-{}", entrance.port(), inbound.port());
        let client_config = format!(
            "outbound:\n- {{ name: {name}, listen: '{entrance}', to: '{inbound}', identity: /ns/t/sa/server, protocol: {protocol}{outbound} }}\n{more}"
        );
        let server_config = format!(
            "inbound:\n- {{ name: {name}, listen: '{inbound}', app: '{app}', protocol: {protocol}{inbound_keys} }}\n{more}"
        );
        let start = |config: &str, api: &WorkloadApi, workers: &Workers| {
            Sidecar::start_with(config, IdentityFrom::WorkloadApi(api.endpoint()), workers.clone())
        };
        let client = start(&client_config, &client_api, workers[0]);
        let server = start(&server_config, &server_api, workers[1]);
        client.ready().await;
        server.ready().await;
        Self {
            authority,
            client,
            client_api,
            server,
            server_api,
            entrance,
            inbound,
            name,
            client_config,
            server_config,
        }
    }

    /// How `id` connects to the inbound side.
    pub(crate) fn connector(&self, id: &str, alpn: Alpn) -> TlsConnector {
        let issued = self.authority.issue(id);
        let chain = vec![CertificateDer::from(issued.leaf)];
        let svid = Svid::new(chain, zeroize::Zeroizing::new(issued.key)).unwrap();
        let bundle = Bundle::from_der([CertificateDer::from(self.authority.certificate.clone())]).unwrap();
        let bundles = Bundles::new([(TrustDomain::new("example.org").unwrap(), bundle)]);
        let identity = Identity { svid: Arc::new(svid), bundles: Arc::new(bundles) };
        let (_sender, watch) = watch::channel(Some(Arc::new(identity)));
        let tls = ClientTls::new(watch, alpn, SpiffeId::new(SERVER).unwrap()).current().unwrap().unwrap();
        TlsConnector::from(tls.config)
    }

    /// A connection to the inbound side as `id`, past the outbound one.
    pub(crate) async fn dial(&self, id: &str, alpn: Alpn) -> TlsStream<TcpStream> {
        let connector = self.connector(id, alpn);
        let tcp = TcpStream::connect(self.inbound).await.unwrap();
        soon("the handshake", connector.connect(any_name(), tcp)).await.unwrap()
    }

    /// The label of the listeners in metrics.
    pub(crate) fn label(&self) -> String {
        format!("listener=\"{}\"", self.name)
    }
}
