//! A SPIFFE Workload API with the policy feed beside it, on a unix socket, that says what the test sets.

use std::pin::Pin;

use countersign_wire::policy::policy_feed_server::{PolicyFeed, PolicyFeedServer};
use countersign_wire::policy::{FollowRequest, Policy};
use countersign_wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use countersign_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, REQUIRED_METADATA, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use futures::{Stream, StreamExt};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

use super::pki::{Authority, Issued};

pub(crate) struct WorkloadApi {
    directory: TempDir,
    identity: watch::Sender<Option<X509svidResponse>>,
    policy: watch::Sender<Option<Policy>>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Served {
    identity: watch::Receiver<Option<X509svidResponse>>,
    policy: watch::Receiver<Option<Policy>>,
}

type Stream_<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl WorkloadApi {
    /// One that has neither an identity nor a policy yet.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (identity, identity_watch) = watch::channel(None);
        let (policy, policy_watch) = watch::channel(None);
        let socket = UnixListener::bind(directory.path().join("api.sock")).unwrap();
        let served = Served { identity: identity_watch, policy: policy_watch };
        let server = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(SpiffeWorkloadApiServer::new(served.clone()))
                .add_service(PolicyFeedServer::new(served))
                .serve_with_incoming(UnixListenerStream::new(socket))
                .await
                .unwrap();
        });
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

fn marked<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get(REQUIRED_METADATA) {
        Some(value) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument("the metadata is missing")),
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Served {
    type FetchX509SVIDStream = Stream_<X509svidResponse>;
    type FetchX509BundlesStream = Stream_<X509BundlesResponse>;
    type FetchJWTBundlesStream = Stream_<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        marked(&request)?;
        if self.identity.borrow().is_none() {
            return Err(Status::unavailable("waiting for the authority at ca:8443"));
        }
        let given = WatchStream::new(self.identity.clone()).filter_map(|given| async move { given.map(Ok) });
        Ok(Response::new(Box::pin(given)))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl PolicyFeed for Served {
    type FollowStream = Stream_<Policy>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        marked(&request)?;
        let given = WatchStream::new(self.policy.clone()).filter_map(|given| async move { given.map(Ok) });
        Ok(Response::new(Box::pin(given)))
    }
}
