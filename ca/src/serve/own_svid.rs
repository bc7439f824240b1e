//! The certificate that the authority itself serves with: issued by its own signing key, audited like any other, and
//! renewed at half of its life.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::tls::{Alpn, EnrolmentVerifier, server_config};
use rustls::ServerConfig;
use tokio::sync::watch;

use crate::audit::{Event, Record};
use crate::clock;
use crate::issue;
use crate::service::Service;

/// How often it is looked at whether half of the life is over. The wall clock decides: a host may sleep.
const LOOK: Duration = Duration::from_millis(500);

/// How soon a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What makes the authority's own certificates.
pub(super) struct OwnSvid {
    pub(super) service: Arc<Service>,
    pub(super) dns: Vec<String>,
}

/// A configuration to serve with, and the time (Unix seconds) from which it is to be renewed.
pub(super) struct Current {
    pub(super) config: Arc<ServerConfig>,
    renew_at: i64,
}

impl OwnSvid {
    /// The first certificate. The error is a sentence.
    pub(super) async fn first(&self) -> Result<watch::Sender<Arc<Current>>, String> {
        Ok(watch::Sender::new(Arc::new(self.make().await?)))
    }

    /// Renews until the authority drains. New handshakes see the new certificate; connections keep what they have.
    pub(super) async fn keep(self, current: watch::Sender<Arc<Current>>) {
        let lifecycle = self.service.lifecycle.clone();
        let mut pause = LOOK;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = lifecycle.draining() => return,
            }
            pause = LOOK;
            if clock::now() < current.borrow().renew_at {
                continue;
            }
            match self.make().await {
                Ok(next) => {
                    current.send_replace(Arc::new(next));
                    tracing::debug!("the authority's own certificate was renewed");
                }
                Err(error) => {
                    tracing::error!(error, "the authority's own certificate cannot be renewed; it will be tried again");
                    pause = RETRY;
                }
            }
        }
    }

    async fn make(&self) -> Result<Current, String> {
        let service = &self.service;
        let made = service.authority.own_svid(self.dns.clone(), service.svid_ttl);
        let (signed, svid) = made.map_err(|error| error.to_string())?;
        let record = Record::own(Event::Issued);
        issue::record(&service.store, record, &signed).await.map_err(|error| error.to_string())?;
        let config = server_config(svid.certified_key(), Arc::new(EnrolmentVerifier), Alpn::Http2);
        let renew_at = clock::now() + (signed.leaf.not_after - clock::now()) / 2;
        Ok(Current { config: config.map_err(|error| error.to_string())?, renew_at })
    }
}
