//! SRV records (RFC 2782): which names and ports offer a service, in which order.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::Located;
use super::answer::{Answer, Failure, Why, screened};
use super::servers::{Servers, left};

/// The addresses of the targets that have been found.
#[derive(Default)]
struct Targets {
    found: HashMap<Name, Vec<IpAddr>>,
    /// What the answer as a whole holds for.
    ttl: Duration,
    /// Of those that were not found, or not whole.
    problems: Vec<String>,
    failure: Option<Failure>,
}

/// Where the service `name` is offered.
pub(super) async fn services(servers: &Servers, name: &str) -> Result<Answer, Failure> {
    let found = servers.records(name, RecordType::SRV).await?;
    let records = records(&found);
    if records.is_empty() {
        return Err(Failure::new(Why::NoRecord, "its SRV records say that the service is not offered"));
    }
    let mut targets = Targets { ttl: left(&found), ..Targets::default() };
    targets.take_enclosed(&found, &records);
    targets.look_up(servers, &records).await;
    let mut endpoints = Vec::new();
    for srv in &records {
        let addresses = targets.found.get(&srv.target).into_iter().flatten();
        endpoints.extend(addresses.map(|ip| Located {
            address: SocketAddr::new(*ip, srv.port),
            weight: srv.weight,
            priority: srv.priority,
        }));
    }
    if endpoints.is_empty() {
        let failure = targets.failure.unwrap_or_else(|| Failure::new(Why::NoRecord, "no target has an address"));
        return Err(Failure { problem: format!("of its SRV records, {}", failure.problem), ..failure });
    }
    Ok(Answer::new(endpoints, targets.ttl, targets.problems, None))
}

/// The records that lead somewhere, those of the lowest priority first.
fn records(found: &Lookup) -> Vec<&SRV> {
    let records = found.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    });
    // The root says that the service is not there.
    let mut records: Vec<&SRV> = records.filter(|srv| !srv.target.is_root() && srv.port != 0).collect();
    records.sort_by(|a, b| (a.priority, &a.target, a.port).cmp(&(b.priority, &b.target, b.port)));
    records
}

impl Targets {
    /// What came with the answer.
    fn take_enclosed(&mut self, found: &Lookup, records: &[&SRV]) {
        let mut enclosed: HashMap<&Name, (Vec<IpAddr>, u32)> = HashMap::new();
        for record in found.additionals() {
            let Some(ip) = record.data.ip_addr() else { continue };
            let (addresses, ttl) = enclosed.entry(&record.name).or_insert_with(|| (Vec::new(), record.ttl));
            addresses.push(ip);
            *ttl = record.ttl.min(*ttl);
        }
        for srv in records {
            if let Some((addresses, ttl)) = enclosed.remove(&srv.target) {
                self.ttl = self.ttl.min(Duration::from_secs(ttl.into()));
                self.take(&srv.target, addresses);
            }
        }
    }

    /// The rest, a few at a time.
    async fn look_up(&mut self, servers: &Servers, records: &[&SRV]) {
        let mut others: Vec<&Name> = Vec::new();
        for srv in records {
            if !self.found.contains_key(&srv.target) && !others.contains(&&srv.target) {
                others.push(&srv.target);
            }
            if others.len() > LOOKED_UP {
                others.truncate(LOOKED_UP);
                self.problems.push(format!("of its targets only {LOOKED_UP} are looked up"));
                break;
            }
        }
        for some in others.chunks(AT_ONCE) {
            let answers = join_all(some.iter().map(|target| servers.addresses_of(target))).await;
            for (target, answer) in some.iter().zip(answers) {
                match answer {
                    Ok(addresses) => {
                        self.ttl = self.ttl.min(addresses.ttl);
                        self.problems.extend(addresses.problem.map(|problem| said(target, &problem)));
                        self.take(target, addresses.list);
                    }
                    Err(failure) => self.failed(target, failure),
                }
            }
        }
        // An answer that costs many questions holds longer: its zone could make every sidecar ask without pause.
        self.ttl = self.ttl.max(Duration::from_secs((others.len() / AT_ONCE) as u64));
        // Of many targets that fail alike the first are enough.
        self.problems.truncate(SAID);
    }

    fn take(&mut self, target: &Name, addresses: Vec<IpAddr>) {
        let (addresses, left_out) = screened(addresses);
        match left_out {
            Some(problem) if addresses.is_empty() => self.failed(target, Failure::new(Why::Unusable, problem)),
            left_out => self.problems.extend(left_out.map(|problem| said(target, &problem))),
        }
        self.found.insert(target.clone(), addresses);
    }

    fn failed(&mut self, target: &Name, failure: Failure) {
        let failure = Failure { problem: said(target, &failure.problem), ..failure };
        self.problems.push(failure.problem.clone());
        self.failure = Some(match self.failure.take() {
            Some(before) => before.or(failure),
            None => failure,
        });
    }
}

/// A name of DNS may hold any byte; this form escapes those that are not to be printed.
fn said(target: &Name, problem: &str) -> String {
    format!("{}: {problem}", target.to_ascii())
}

/// How many targets are looked up, and how many at once: a single answer could name four thousand.
const LOOKED_UP: usize = 128;
const AT_ONCE: usize = 8;

/// How many problems are told.
const SAID: usize = 3;
