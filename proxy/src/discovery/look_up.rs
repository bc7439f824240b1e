//! One look-up: where an address of the configuration leads to now.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Located;
use super::answer::{Addresses, Answer, Failure, LONGEST};
use super::servers::Servers;
use super::services::{Known, services};
use crate::config::Address;

/// Asks `servers` where `of` leads to. It ends within [`LIMIT`]. `known` is what the look-ups of it before have found.
pub(super) async fn look_up(servers: &Servers, of: &Address, known: &mut Known) -> Result<Answer, Failure> {
    let began = Instant::now();
    let found = timeout(LIMIT, ask(servers, of, known)).await;
    let found = found.unwrap_or_else(|_| Err(Failure::no_answer()));
    let result = found.as_ref().map_or_else(|failure| failure.why.as_str(), |_| "ok");
    metrics::counter!("countersign_dns_lookups_total", "result" => result).increment(1);
    metrics::histogram!("countersign_dns_lookup_duration_seconds").record(began.elapsed().as_secs_f64());
    let said = |problem: String| format!("{}: {problem}", name_of(of));
    match found {
        Ok(answer) => Ok(Answer { problem: answer.problem.map(said), ..answer }),
        Err(failure) => Err(Failure { problem: said(failure.problem), ..failure }),
    }
}

async fn ask(servers: &Servers, of: &Address, known: &mut Known) -> Result<Answer, Failure> {
    match of {
        Address::Socket(address) => Ok(Answer::new(vec![Located::plain(*address)], LONGEST, Vec::new(), None)),
        Address::Name(host, port) => {
            let Addresses { list, ttl, problem, lacks } = servers.addresses(host).await?;
            let endpoints = list.into_iter().map(|ip| Located::plain(SocketAddr::new(ip, *port))).collect();
            Ok(Answer::new(endpoints, ttl, problem.into_iter().collect(), lacks))
        }
        Address::Srv(name) => services(servers, name, known).await,
    }
}

/// Without the port, which DNS is not asked about.
fn name_of(of: &Address) -> String {
    match of {
        Address::Name(host, _) => host.clone(),
        of => of.to_string(),
    }
}

/// How long one look-up may take, with every name of the search list and every target.
const LIMIT: Duration = Duration::from_secs(10);
