//! A SPIFFE Workload API with the policy feed beside it, on a unix socket, that says what the test sets.

use countersign_testing::Answers;
use countersign_wire::policy::policy_feed_server::{PolicyFeed, PolicyFeedServer};
use countersign_wire::policy::{FollowRequest, Policy};
use countersign_wire::workload::{X509svid, X509svidResponse};
use futures::StreamExt;
use futures::stream::BoxStream;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

use super::pki::{Authority, Issued};

pub(crate) struct WorkloadApi {
    directory: TempDir,
    identity: Answers,
    policy: watch::Sender<Option<Policy>>,
    server: tokio::task::JoinHandle<()>,
}

struct Feed(watch::Receiver<Option<Policy>>);

impl WorkloadApi {
    /// One that has neither an identity nor a policy yet.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (identity, policy) = (Answers::new(None), watch::Sender::new(None));
        let socket = UnixListener::bind(directory.path().join("api.sock")).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(countersign_testing::WorkloadApi::serving(&identity))
            .add_service(PolicyFeedServer::new(Feed(policy.subscribe())));
        let server =
            tokio::spawn(async move { server.serve_with_incoming(UnixListenerStream::new(socket)).await.unwrap() });
        Self { directory, identity, policy, server }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.directory.path().join("api.sock").display())
    }

    /// Gives an SVID and the authorities of its trust domain.
    pub(crate) fn identity(&self, issued: &Issued, authorities: &[&Authority]) {
        self.identity_with_foreign(issued, authorities, &[]);
    }

    /// As [`WorkloadApi::identity`], with the bundles of other trust domains.
    pub(crate) fn identity_with_foreign(
        &self,
        issued: &Issued,
        authorities: &[&Authority],
        foreign: &[(&str, Vec<u8>)],
    ) {
        let bundle: Vec<u8> = authorities.iter().flat_map(|authority| authority.certificate.clone()).collect();
        let svid = X509svid {
            spiffe_id: issued.id.clone(),
            x509_svid: issued.leaf.clone().into(),
            x509_svid_key: issued.key.clone().into(),
            bundle: bundle.into(),
            hint: String::new(),
        };
        let foreign = foreign.iter().map(|(domain, bundle)| ((*domain).to_owned(), bundle.clone().into()));
        let federated_bundles = foreign.collect();
        self.identity.send_replace(Some(X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles }));
    }

    /// Gives a policy.
    pub(crate) fn policy(&self, yaml: &str) {
        self.policy.send_modify(|policy| {
            let generation = policy.as_ref().map_or(0, |policy| policy.generation) + 1;
            *policy = Some(Policy { generation, yaml: yaml.to_owned() });
        });
    }
}

impl Drop for WorkloadApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tonic::async_trait]
impl PolicyFeed for Feed {
    type FollowStream = BoxStream<'static, Result<Policy, Status>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        countersign_testing::WorkloadApi::marked(&request)?;
        let given = WatchStream::new(self.0.clone()).filter_map(|given| async move { given.map(Ok) });
        Ok(Response::new(given.boxed()))
    }
}
