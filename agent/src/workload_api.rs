//! The SPIFFE Workload API (X.509 profile) and, beside it, the policy feed, on one unix socket.
//!
//! Who may open the socket is this workload: file permissions decide. Invariant: no call is answered without the
//! metadata that the standard asks for, and no expired SVID is served. gRPC server reflection (a SHOULD of the
//! standard) is not served: no SPIFFE client uses it.

mod connections;
mod policy_feed;
mod socket_authority;
mod x509;

use std::sync::Arc;

use countersign_identity::IdentityWatch;
use countersign_runtime::Lifecycle;
use countersign_wire::policy::policy_feed_server::PolicyFeedServer;
use countersign_wire::workload::REQUIRED_METADATA;
use countersign_wire::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};

use crate::follow::PolicyText;

/// What is served.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) identity: IdentityWatch,
    pub(crate) policy: watch::Receiver<Option<Arc<PolicyText>>>,
    /// What is waited for where there is no identity.
    pub(crate) status: crate::Status,
    pub(crate) lifecycle: Lifecycle,
}

/// Serves on `listener` until the process stops; it answers while the process drains.
pub(crate) async fn serve(listener: UnixListener, served: Served) -> Result<(), tonic::transport::Error> {
    let workload_api = SpiffeWorkloadApiServer::new(served.clone()).max_decoding_message_size(MAX_REQUEST);
    let policy_feed = PolicyFeedServer::new(served.clone()).max_decoding_message_size(MAX_REQUEST);
    let lifecycle = served.lifecycle.clone();
    let connections = connections::incoming(listener);
    let serving = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .add_service(InterceptedService::new(workload_api, require_metadata))
        .add_service(InterceptedService::new(policy_feed, require_metadata))
        .serve_with_incoming_shutdown(connections, lifecycle.stopping());
    tokio::select! {
        result = serving => result,
        // Streams end by themselves when the process stops; a client that keeps its connection open is not waited for.
        () = async {
            lifecycle.stopping().await;
            tokio::time::sleep(GRACE).await;
        } => Ok(()),
    }
}

/// SPIFFE Workload Endpoint §3.1: a request without the metadata may have been tricked out of the workload.
fn require_metadata(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(REQUIRED_METADATA).iter();
    if values.next().is_some_and(|value| value == "true") && values.next().is_none() {
        return Ok(request);
    }
    metrics::counter!("countersign_agent_workload_api_requests_total", "method" => "any", "result" => "refused")
        .increment(1);
    Err(Status::invalid_argument("the metadata workload.spiffe.io: true is missing"))
}

/// Counts a call.
fn count(method: &'static str, result: &'static str) {
    metrics::counter!("countersign_agent_workload_api_requests_total", "method" => method, "result" => result)
        .increment(1);
}

/// A stream of answers that ends when the process stops, and is counted while it lives.
fn until_stopped<T: Send + 'static>(
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    lifecycle: Lifecycle,
) -> BoxStream<'static, Result<T, Status>> {
    let open = OpenStream::new();
    let stopping = async move { lifecycle.stopping().await };
    answers
        .take_until(stopping)
        .map(move |answer| {
            let _counted = &open;
            answer
        })
        .boxed()
}

/// A stream that counts as open until it is dropped.
struct OpenStream;

impl OpenStream {
    fn new() -> Self {
        metrics::gauge!("countersign_agent_workload_api_streams").increment(1.0);
        Self
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        metrics::gauge!("countersign_agent_workload_api_streams").decrement(1.0);
    }
}

/// Requests carry nothing; this is generous.
const MAX_REQUEST: usize = 64 << 10;
const MAX_HEADERS: u32 = 16 << 10;
/// Streams at once on one connection.
const STREAMS: u32 = 64;
/// How long clients have to take note of the end.
const GRACE: std::time::Duration = std::time::Duration::from_secs(1);
