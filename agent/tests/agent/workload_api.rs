//! The Workload API and the policy feed, seen from clients that are not ours.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use countersign_wire::policy::FollowRequest;
use countersign_wire::policy::policy_feed_client::PolicyFeedClient;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::workload::{JwtsvidRequest, X509svidRequest};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use spiffe::WorkloadApiClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::support::authority::{Authority, WORKLOAD, bundle, issuer, socket};
use crate::support::free_address;
use crate::support::{Running, eventually};

async fn stranger(directory: &Path) -> WorkloadApiClient {
    WorkloadApiClient::connect_to(format!("unix://{}", socket(directory).display())).await.unwrap()
}

fn channel(directory: &Path) -> Channel {
    let path = socket(directory);
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_the_identity_at_once_and_every_renewal() {
    let authority = Authority::start();
    authority.book(|book| book.ttl = Duration::from_secs(4));
    let federated = issuer("partner.example");
    authority.snapshot.send_modify(|snapshot| snapshot.bundles.push(bundle("partner.example", &[&federated])));
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    running.ready().await;
    let client = stranger(directory.path()).await;
    let mut contexts = client.stream_x509_contexts().await.unwrap();
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let context = contexts.next().await.unwrap().unwrap();
        let svid = context.default_svid().unwrap();
        assert_eq!(svid.spiffe_id().to_string(), WORKLOAD);
        serials.insert(svid.leaf().as_bytes().to_vec());
        for domain in ["example.org", "partner.example"] {
            let domain = spiffe::TrustDomain::new(domain).unwrap();
            assert_eq!(context.bundle_set().get(&domain).unwrap().authorities().len(), 1);
        }
    }
    assert_eq!(serials.len(), 2, "the second is a renewal");
    let bundles = client.fetch_x509_bundles().await.unwrap();
    assert_eq!(bundles.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_identity_the_answer_is_unavailable_and_says_what_is_waited_for() {
    let authority = Authority::absent(&free_address().to_string());
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    eventually("the reason", || running.reasons().contains("no connection").then_some(())).await;
    let mut client = SpiffeWorkloadApiClient::new(channel(directory.path()));
    let status = client.fetch_x509svid(request(X509svidRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("no connection to the authority at"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_ends_with_unavailable_when_the_svid_expires() {
    let mut authority = Authority::start();
    authority.book(|book| book.ttl = Duration::from_secs(3));
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    running.ready().await;
    let mut client = SpiffeWorkloadApiClient::new(channel(directory.path()));
    let mut stream = client.fetch_x509svid(request(X509svidRequest {})).await.unwrap().into_inner();
    authority.die();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    let status = client.fetch_x509svid(request(X509svidRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "an expired SVID is not served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_the_metadata_is_an_invalid_argument_and_jwt_is_unimplemented() {
    let authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    running.ready().await;
    let mut client = SpiffeWorkloadApiClient::new(channel(directory.path()));
    let code = |status: tonic::Status| status.code();
    assert_eq!(client.fetch_x509svid(X509svidRequest {}).await.map(drop).map_err(code), Err(Code::InvalidArgument));
    let mut wrong = request(X509svidRequest {});
    wrong.metadata_mut().insert("workload.spiffe.io", "false".parse().unwrap());
    assert_eq!(client.fetch_x509svid(wrong).await.map(drop).map_err(code), Err(Code::InvalidArgument));
    let jwt = JwtsvidRequest { audience: vec!["a".into()], spiffe_id: String::new() };
    assert_eq!(client.fetch_jwtsvid(request(jwt)).await.map(drop).map_err(code), Err(Code::Unimplemented));
    let mut feed = PolicyFeedClient::new(channel(directory.path()));
    assert_eq!(feed.follow(FollowRequest {}).await.map(drop).map_err(code), Err(Code::InvalidArgument));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_feed_gives_the_policy_at_once_and_again_when_it_changes() {
    let authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    running.ready().await;
    let mut feed = PolicyFeedClient::new(channel(directory.path()));
    let mut policies = feed.follow(request(FollowRequest {})).await.unwrap().into_inner();
    let first = policies.message().await.unwrap().unwrap();
    assert_eq!((first.generation, first.yaml.as_str()), (1, "version: 1\n"));
    authority.snapshot.send_modify(|snapshot| {
        snapshot.generation = 7;
        snapshot.policy_yaml = "version: 1\nrules: []\n".into();
    });
    let second = policies.message().await.unwrap().unwrap();
    assert_eq!((second.generation, second.yaml.as_str()), (7, "version: 1\nrules: []\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_the_server_end_when_the_process_stops() {
    let authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let sidecar = format!("{}  socket_mode: 0660\n", authority.sidecar(directory.path()));
    let running = Running::start(&sidecar);
    running.ready().await;
    let mode = std::fs::metadata(socket(directory.path())).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    let mut client = SpiffeWorkloadApiClient::new(channel(directory.path()));
    let mut stream = client.fetch_x509svid(request(X509svidRequest {})).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    running.stop().await;
    assert!(!matches!(stream.message().await, Ok(Some(_))));
}
