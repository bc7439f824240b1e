//! The other parties: see the modules.

pub(crate) mod authority;
pub(crate) mod directory;
pub(crate) mod vault;

use std::time::{Duration, Instant};

use countersign_agent::{Agent, Config};
use countersign_config::Document;
use countersign_identity::TrustDomain;
use countersign_runtime::Lifecycle;
pub(crate) use countersign_testing::{DEADLINE, PROMPT, free_address};

/// What `try_it` gives, as soon as it gives something.
pub(crate) async fn eventually<T>(what: &str, mut try_it: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = try_it() {
            return found;
        }
        assert!(Instant::now() < deadline, "did not come: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A `sidecar.yaml` as `countersign agent` reads it.
pub(crate) fn config(text: &str) -> Result<Config, String> {
    let document = Document::parse("sidecar.yaml", text).map_err(|problems| problems.to_string())?;
    let read = document.decode(|root| {
        let table = root.table()?;
        Config::read(&table, &TrustDomain::new("example.org").unwrap())
    });
    read.map_err(|problems| problems.to_string())
}

/// An agent that stops when it is dropped.
pub(crate) struct Running {
    pub(crate) agent: Agent,
    pub(crate) lifecycle: Lifecycle,
}

impl Running {
    pub(crate) fn start(text: &str) -> Self {
        let lifecycle = Lifecycle::new();
        let agent = Agent::start(config(text).unwrap(), &lifecycle).unwrap();
        Self { agent, lifecycle }
    }

    pub(crate) fn reasons(&self) -> String {
        self.agent.ready().now().err().unwrap_or_default().join("\n")
    }

    pub(crate) async fn ready(&self) {
        eventually("ready", || self.agent.ready().now().ok()).await;
    }

    pub(crate) async fn stop(self) {
        self.lifecycle.stop();
        tokio::time::timeout(Duration::from_secs(5), self.lifecycle.finished()).await.expect("it stops");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}
