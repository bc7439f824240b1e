//! SRV records (RFC 2782): which names and ports offer a service, in which order.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::iter;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::time::{Instant, timeout_at};

use super::Located;
use super::answer::{Addresses, Answer, Failure, PATIENT, Why};
use super::servers::{Servers, left};

/// The addresses of targets, by name.
pub(super) type Known = HashMap<Name, Vec<IpAddr>>;

/// The addresses of the targets that have been found.
struct Targets<'a> {
    found: Known,
    /// Those of the answer before.
    known: &'a Known,
    /// What the answer as a whole holds for.
    ttl: Duration,
    /// Whether any target was found anew.
    fresh: bool,
    /// Of those that were not found, or not whole.
    problems: Vec<String>,
    failure: Option<Failure>,
}

/// Where the service `name` is offered. A target that cannot be asked for has the addresses that are `known` of it, which are
/// those of this answer from now on.
pub(super) async fn services(servers: &Servers, name: &str, known: &mut Known) -> Result<Answer, Failure> {
    let until = Instant::now() + IN_TIME;
    let found = servers.records(name, RecordType::SRV).await?;
    let records = records(&found);
    if records.is_empty() {
        return Err(Failure::new(Why::NoRecord, "its SRV records say that the service is not offered"));
    }
    let (ttl, problems) = (left(&found), Vec::new());
    let mut targets = Targets { found: Known::new(), known, ttl, fresh: false, problems, failure: None };
    targets.look_up(servers, &found, &records, until).await;
    if !targets.fresh {
        let failure = targets.failure.unwrap_or_else(|| Failure::new(Why::NoRecord, "no target has an address"));
        return Err(Failure { problem: format!("of its SRV records, {}", failure.problem), ..failure });
    }
    let mut endpoints = Vec::new();
    for srv in &records {
        let addresses = targets.found.get(&srv.target).into_iter().flatten();
        endpoints.extend(addresses.map(|ip| Located {
            address: SocketAddr::new(*ip, srv.port),
            weight: srv.weight,
            priority: srv.priority,
        }));
    }
    let Targets { found, ttl, problems, .. } = targets;
    *known = found;
    Ok(Answer::new(endpoints, ttl, problems, None))
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

/// The addresses that came with the answer.
fn enclosed(found: &Lookup) -> HashMap<&Name, Vec<&Record>> {
    let mut enclosed: HashMap<&Name, Vec<&Record>> = HashMap::new();
    for record in found.additionals().iter().filter(|record| record.data.ip_addr().is_some()) {
        enclosed.entry(&record.name).or_default().push(record);
    }
    enclosed
}

impl Targets<'_> {
    /// What came with the answer, and the rest a few at a time, `until` then.
    async fn look_up(&mut self, servers: &Servers, found: &Lookup, records: &[&SRV], until: Instant) {
        let enclosed = enclosed(found);
        let enclosed = |target: &Name| enclosed.get(target).map_or(&[][..], Vec::as_slice);
        let mut targets: Vec<&Name> = Vec::new();
        for srv in records {
            if !targets.contains(&&srv.target) {
                targets.push(&srv.target);
            }
        }
        // One family does not say that there is none of the other. But those of which nothing came go before.
        let is_whole = |target: &Name| {
            [RecordType::A, RecordType::AAAA]
                .iter()
                .all(|kind| enclosed(target).iter().any(|record| record.record_type() == *kind))
        };
        let (mut at_hand, mut asked): (Vec<&Name>, Vec<&Name>) = targets.into_iter().partition(|name| is_whole(name));
        asked.sort_by_key(|target| !enclosed(target).is_empty());
        at_hand.extend(asked.split_off(LOOKED_UP.min(asked.len())));
        let mut left_out = false;
        for target in at_hand {
            match servers.at_hand(target, enclosed(target)) {
                Some(answer) => self.take(target, answer),
                None => left_out = true,
            }
        }
        if left_out {
            self.problems.insert(0, format!("of its targets only {LOOKED_UP} are looked up"));
        }
        let ask = asked.iter().map(|target| timeout_at(until, servers.addresses_of(target, enclosed(target))));
        let answers: Vec<_> = iter(ask.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
        for (target, answer) in asked.iter().zip(answers) {
            self.take(target, answer.unwrap_or_else(|_| Err(Failure::no_answer())));
        }
        // An answer that costs many questions holds longer: its zone could make every sidecar ask without pause.
        self.ttl = self.ttl.max(Duration::from_secs((asked.len() / AT_ONCE) as u64));
        // Of many targets that fail alike the first are enough.
        self.problems.truncate(SAID);
    }

    fn take(&mut self, target: &Name, answer: Result<Addresses, Failure>) {
        let before = self.known.get(target).into_iter().flatten().copied();
        let addresses: Vec<IpAddr> = match answer {
            Ok(Addresses { mut list, ttl, problem, lacks }) => {
                self.fresh = true;
                self.ttl = self.ttl.min(ttl);
                self.problems.extend(problem.map(|problem| said(target, &problem)));
                // What could not be asked for is as it was.
                list.extend(before.filter(|ip| lacks.is_some_and(|family| family.holds(*ip))));
                list
            }
            Err(failure) => {
                let failure = Failure { problem: said(target, &failure.problem), ..failure };
                self.problems.push(failure.problem.clone());
                let passing = failure.is_passing();
                self.failure = Some(match self.failure.take() {
                    Some(before) => before.or(failure),
                    None => failure,
                });
                if !passing {
                    return;
                }
                self.ttl = self.ttl.min(PATIENT);
                before.collect()
            }
        };
        self.found.insert(target.clone(), addresses);
    }
}

/// A name of DNS may hold any byte; this form escapes those that are not to be printed.
fn said(target: &Name, problem: &str) -> String {
    format!("{}: {problem}", target.to_ascii())
}

/// How many targets are looked up, and how many at once: a single answer could name four thousand.
const LOOKED_UP: usize = 128;
const AT_ONCE: usize = 8;

/// How long targets are asked for: what was found until then counts, before the look-up as a whole has failed.
const IN_TIME: Duration = Duration::from_secs(8);

/// How many problems are told.
const SAID: usize = 3;
