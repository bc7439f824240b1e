//! The Workload API's calls. Each message of a stream is the whole state.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use countersign_identity::{Bundle, Identity};
use countersign_wire::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use countersign_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use futures::stream::{BoxStream, unfold};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::{Served, count, until_stopped};

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Served {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.stream("FetchX509SVID", |_, _| false, svids)
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream("FetchX509Bundles", |sent, now| Arc::ptr_eq(&sent.bundles, &now.bundles), bundles)
    }

    async fn fetch_jwtsvid(&self, _request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(no_jwt("FetchJWTSVID"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(no_jwt("FetchJWTBundles"))
    }

    async fn validate_jwtsvid(
        &self,
        _request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(no_jwt("ValidateJWTSVID"))
    }
}

impl Served {
    /// A stream of what `describe` makes of the identity: at once, and after each change that is not the `same`.
    /// It ends with UNAVAILABLE when there is no identity any more, so that the client asks again.
    fn stream<T: Send + 'static>(
        &self,
        method: &'static str,
        same: fn(&Identity, &Identity) -> bool,
        describe: fn(&Identity) -> T,
    ) -> Result<Response<Answers<T>>, Status> {
        if self.identity.borrow().is_none() {
            count(method, "unavailable");
            return Err(self.unavailable());
        }
        count(method, "served");
        let first: Option<Arc<Identity>> = None;
        let answers = unfold((self.clone(), first, false), move |(mut served, mut sent, ended)| async move {
            if ended {
                return None;
            }
            loop {
                let now = served.identity.borrow_and_update().clone();
                match (now, &sent) {
                    (None, _) => return Some((Err(served.unavailable()), (served, sent, true))),
                    (Some(now), Some(before)) if Arc::ptr_eq(&now, before) || same(before, &now) => sent = Some(now),
                    (Some(now), _) => return Some((Ok(describe(&now)), (served, Some(now), false))),
                }
                // Its sender lives as long as the process serves.
                served.identity.changed().await.ok()?;
            }
        });
        Ok(Response::new(until_stopped(answers, self.lifecycle.clone())))
    }

    fn unavailable(&self) -> Status {
        Status::unavailable(format!("no identity: {}", self.status.reason()))
    }
}

fn svids(identity: &Identity) -> X509svidResponse {
    let svid = &identity.svid;
    let own = svid.id().trust_domain();
    let key = Zeroizing::new(svid.key_pkcs8().to_vec());
    let federated = identity.bundles.iter().filter(|(trust_domain, _)| *trust_domain != own);
    X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: svid.id().to_string(),
            x509_svid: concatenated(svid.chain().iter().map(AsRef::as_ref)),
            // Wiped when the message is dropped; the transport's own buffers are out of our hands.
            x509_svid_key: Bytes::from_owner(key),
            bundle: identity.bundles.of(own).map(der).unwrap_or_default(),
            hint: String::new(),
        }],
        crl: Vec::new(),
        federated_bundles: federated.map(|(domain, bundle)| (format!("spiffe://{domain}"), der(bundle))).collect(),
    }
}

fn bundles(identity: &Identity) -> X509BundlesResponse {
    let bundles = identity.bundles.iter().map(|(domain, bundle)| (format!("spiffe://{domain}"), der(bundle)));
    X509BundlesResponse { crl: Vec::new(), bundles: bundles.collect::<HashMap<_, _>>() }
}

fn der(bundle: &Bundle) -> Bytes {
    concatenated(bundle.certificates().map(AsRef::as_ref))
}

fn concatenated<'a>(certificates: impl Iterator<Item = &'a [u8]>) -> Bytes {
    certificates.flatten().copied().collect()
}

fn no_jwt(method: &'static str) -> Status {
    count(method, "unimplemented");
    Status::unimplemented("JWT-SVIDs are not served here")
}
