//! A SPIFFE Workload API of X.509 SVIDs that says what a test sets.

use countersign_wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use countersign_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, REQUIRED_METADATA, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

/// What it says, and whoever sets it; its streams end when this is dropped.
pub type Answers = watch::Sender<Option<X509svidResponse>>;

/// The service.
pub struct WorkloadApi(watch::Receiver<Option<X509svidResponse>>);

impl WorkloadApi {
    /// One that says `answers`; while there is none, it is unavailable.
    pub fn serving(answers: &Answers) -> SpiffeWorkloadApiServer<Self> {
        SpiffeWorkloadApiServer::new(Self(answers.subscribe()))
    }

    /// Whether a call has the metadata that every call must have.
    ///
    /// # Errors
    /// It has not.
    pub fn marked<T>(request: &Request<T>) -> Result<(), Status> {
        match request.metadata().get(REQUIRED_METADATA) {
            Some(value) if value == "true" => Ok(()),
            _ => Err(Status::invalid_argument("the metadata is missing")),
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = BoxStream<'static, Result<JwtBundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Self::marked(&request)?;
        if self.0.borrow().is_none() {
            return Err(Status::unavailable("waiting for the authority at ca:8443"));
        }
        let given = WatchStream::new(self.0.clone()).filter_map(|given| async move { given.map(Ok) });
        Ok(Response::new(given.boxed()))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}
