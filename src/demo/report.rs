//! What the demo has shown, for a reader and for a program.

use serde::Serialize;

use super::service::Name;
use super::world::World;
use crate::exit::Failure;

/// The story's result; the JSON of `--once --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Milliseconds from the start of the authority until every sidecar was ready.
    pub(crate) ready_ms: u128,
    /// Milliseconds from the start of the authority until the first answer came back over mutual TLS.
    pub(crate) first_answer_ms: u128,
    pub(crate) requests: u64,
    pub(crate) failed_requests: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_failure: Option<String>,
    pub(crate) edges: Vec<Edge>,
    pub(crate) denied: Vec<Denied>,
    pub(crate) rotations: Vec<Rotation>,
    pub(crate) secrets: Vec<SecretChange>,
}

/// One caller and one service, as the called side's sidecar saw them.
#[derive(Debug, Serialize)]
pub(crate) struct Edge {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) tls: String,
    pub(crate) key_exchange: String,
    pub(crate) requests: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// A call that policy denied.
#[derive(Debug, Serialize)]
pub(crate) struct Denied {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) request: String,
    pub(crate) status: u16,
    pub(crate) decision: String,
    pub(crate) why: String,
}

/// The certificates that one service had while requests were under way.
#[derive(Debug, Serialize)]
pub(crate) struct Rotation {
    pub(crate) service: &'static str,
    pub(crate) certificates: Vec<String>,
    /// Requests of the whole mesh while it rotated.
    pub(crate) requests_meanwhile: u64,
    pub(crate) failed_meanwhile: u64,
}

/// A secret that was changed in its backend.
#[derive(Debug, Serialize)]
pub(crate) struct SecretChange {
    pub(crate) secret: &'static str,
    pub(crate) service: &'static str,
    /// Milliseconds from the write in the backend until the service used the new value.
    pub(crate) took_ms: u128,
}

impl Report {
    /// Whether all of it held.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        let held = |what: &str, held: bool| {
            if held { Ok(()) } else { Err(Failure::Failed(format!("the demo did not hold: {what}"))) }
        };
        held("no request fails", self.requests > 0 && self.failed_requests == 0)?;
        held("two edges carry requests", self.edges.len() == 2 && self.edges.iter().all(|edge| edge.requests > 0))?;
        let protected = |edge: &Edge| edge.tls == "1.3" && edge.key_exchange == "X25519MLKEM768";
        held("every edge is TLS 1.3 with X25519MLKEM768", self.edges.iter().all(protected))?;
        let explained = |denied: &Denied| denied.status == 403 && !denied.decision.is_empty() && !denied.why.is_empty();
        held(
            "the forbidden call is denied and explained",
            self.denied.len() == 1 && self.denied.iter().all(explained),
        )?;
        let rotated = |rotation: &Rotation| {
            rotation.certificates.len() > 1 && rotation.requests_meanwhile > 0 && rotation.failed_meanwhile == 0
        };
        held("every certificate rotates under load", self.rotations.len() == 3 && self.rotations.iter().all(rotated))?;
        held("the changed secret is taken up", self.secrets.len() == 1)
    }
}

/// Says what happens, as it happens, to a reader; says nothing to a program.
#[expect(clippy::print_stdout, reason = "the demo speaks to its user")]
pub(crate) fn narrator(narrate: bool) -> impl Fn(&str) {
    move |line| {
        if narrate {
            println!("  {line}");
        }
    }
}

/// Prints the report.
#[expect(clippy::print_stdout, reason = "the demo speaks to its user")]
pub(crate) fn print(report: &Report, json: bool) {
    if json {
        println!("{}", serde_json::to_string_pretty(report).unwrap_or_default());
        return;
    }
    println!("\nready after {} ms, first answer over mutual TLS after {} ms", report.ready_ms, report.first_answer_ms);
    println!("\nedges (both ends proved who they are)");
    for edge in &report.edges {
        println!("  {}\n    -> {}", edge.from, edge.to);
        println!(
            "       TLS {} {}   {} requests   p50 {:.2} ms   p99 {:.2} ms",
            edge.tls, edge.key_exchange, edge.requests, edge.p50_ms, edge.p99_ms
        );
    }
    println!("\ndenied");
    for denied in &report.denied {
        println!("  {} -> {}: {}", denied.from, denied.to, denied.request);
        println!("       {} decision {}\n       {}", denied.status, denied.decision, denied.why);
    }
    println!("\nrotated under load");
    for rotation in &report.rotations {
        println!(
            "  {:5} {} certificates, {} requests meanwhile, {} failed",
            rotation.service,
            rotation.certificates.len(),
            rotation.requests_meanwhile,
            rotation.failed_meanwhile
        );
    }
    println!("\nsecrets");
    for change in &report.secrets {
        println!(
            "  {} changed in its backend; {} used the new value after {} ms",
            change.secret, change.service, change.took_ms
        );
    }
    println!("\n{} requests, {} failed", report.requests, report.failed_requests);
    if let Some(failure) = &report.first_failure {
        println!("the first failure: {failure}");
    }
}

/// Says what to try while the demo stays up.
#[expect(clippy::print_stdout, reason = "the demo speaks to its user")]
pub(crate) fn print_invitation(world: &World) {
    let (app, nlp) = (world.place(Name::App), world.place(Name::Nlp));
    println!("\nIt stays up. Try:");
    println!("  curl -N  http://{}/ask          the answer, streamed over two hops of mutual TLS", app.app);
    println!("  curl -i  http://{}/direct       the call that policy denies", app.app);
    println!(
        "  curl     http://{}/identity     what a sidecar says of itself (also /metrics /ready /config /decisions)",
        nlp.admin
    );
    println!("  edit     {}/policy.yaml   and see it in force within a second", world.path("ca").display());
    println!("Ctrl-C ends it and removes everything.");
}
