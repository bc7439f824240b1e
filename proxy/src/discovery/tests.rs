//! Discovery against a real DNS server.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_runtime::Lifecycle;
use countersign_testing::{DEADLINE, Knot, eventually, free_address};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use tempfile::TempDir;
use tokio::time::timeout;

use super::answer::{Answer, Failure, Why};
use super::following::{Discovery, Found, follow};
use super::look_up::look_up;
use super::resolver::Resolver;
use super::servers::Servers;
use super::services::Known;
use super::system::System;
use crate::config::{Address, Dns};

mod odd;

/// A DNS server, and who asks it.
struct Ground {
    directory: TempDir,
    knot: Knot,
    lifecycle: Lifecycle,
    resolver: Arc<Resolver>,
}

impl Ground {
    async fn start(records: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let knot = Knot::start(&directory.path().join("knot"), free_address(), records).await;
        let lifecycle = Lifecycle::new();
        let resolver = asking(directory.path(), &[knot.address()], &lifecycle);
        Self { directory, knot, lifecycle, resolver }
    }

    async fn look_up(&self, of: &str) -> Result<Answer, Failure> {
        let servers = Arc::clone(&self.resolver.servers().borrow());
        look_up(&servers, &address(of), &mut Known::new()).await
    }

    fn follow(&self, of: &[&str]) -> Discovery {
        let to = of.iter().map(|of| address(of)).collect();
        follow(to, Arc::clone(&self.resolver), &self.lifecycle)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

/// A resolver of a machine with an empty hosts file, which asks these servers.
fn asking(directory: &Path, servers: &[SocketAddr], lifecycle: &Lifecycle) -> Arc<Resolver> {
    let system = System { resolv_conf: directory.join("resolv.conf"), hosts: directory.join("hosts") };
    Resolver::of(system, Some(&Dns { servers: servers.to_vec() }), lifecycle)
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn shown(found: &Found) -> Vec<String> {
    found.endpoints.iter().map(|located| located.address.to_string()).collect()
}

/// Waits until `discovery` says what `holds`.
async fn until(discovery: &Discovery, what: &str, holds: impl Fn(&Found) -> bool) -> Arc<Found> {
    let mut watch = discovery.watch();
    let found = timeout(DEADLINE, watch.wait_for(|found| found.as_deref().is_some_and(&holds))).await;
    let found = found.unwrap_or_else(|_| panic!("{what}: {:?}", discovery.watch().borrow()));
    found.unwrap().clone().unwrap()
}

#[tokio::test]
async fn a_changed_record_is_taken_up_when_its_ttl_has_passed() {
    let mut ground = Ground::start("api 1 A 127.0.0.2").await;
    let discovery = ground.follow(&["api.mesh.test:80"]);
    assert_eq!(shown(&discovery.first().await.unwrap()), ["127.0.0.2:80"]);
    ground.knot.write("api 1 A 127.0.0.3\napi 1 A 127.0.0.2");
    until(&discovery, "it has two", |found| shown(found) == ["127.0.0.2:80", "127.0.0.3:80"]).await;
    ground.knot.write("api 1 A 127.0.0.3");
    let found = until(&discovery, "it has the other", |found| shown(found) == ["127.0.0.3:80"]).await;
    assert_eq!(found.problem, None);
}

#[tokio::test]
async fn an_answer_holds_a_second_at_least_and_five_minutes_at_most() {
    let ground =
        Ground::start("zero 0 A 127.0.0.2\nweek 604800 A 127.0.0.2\nminute 60 A 127.0.0.2\nminute 9 AAAA ::2").await;
    for (name, least, most) in [("zero", 1, 1), ("week", 300, 300), ("minute", 8, 9)] {
        let ttl = ground.look_up(&format!("{name}.mesh.test:80")).await.unwrap().ttl;
        assert!((Duration::from_secs(least)..=Duration::from_secs(most)).contains(&ttl), "{name}: {ttl:?}");
    }
}

#[tokio::test]
async fn both_families_are_found_each_address_once_ipv4_first() {
    let records = "api AAAA 2001:db8::2\napi AAAA ::1\napi A 127.0.0.3\napi A 127.0.0.2\nsix AAAA ::1\nalias CNAME six";
    let ground = Ground::start(records).await;
    let answer = ground.look_up("api.mesh.test:80").await.unwrap();
    let addresses: Vec<_> = answer.endpoints.iter().map(|located| located.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.2:80", "127.0.0.3:80", "[::1]:80", "[2001:db8::2]:80"]);
    assert_eq!((answer.problem, answer.lacks), (None, None));
    for name in ["six", "alias"] {
        let answer = ground.look_up(&format!("{name}.mesh.test:80")).await.unwrap();
        assert_eq!(answer.endpoints.first().unwrap().address, "[::1]:80".parse().unwrap());
        assert_eq!((answer.problem, answer.lacks), (None, None), "a name without IPv4 is no problem");
    }
}

#[tokio::test]
async fn srv_records_name_ports_priorities_and_weights() {
    let records = "_mesh._tcp 30 SRV 20 5 8001 one\n_mesh._tcp 30 SRV 10 3 8002 two\n_mesh._tcp 30 SRV 10 1 8003 one\n\
                   one 20 A 127.0.0.2\ntwo 25 A 127.0.0.3\ntwo AAAA ::1";
    let ground = Ground::start(records).await;
    let answer = ground.look_up("srv://_mesh._tcp.mesh.test").await.unwrap();
    let seen: Vec<_> = answer
        .endpoints
        .iter()
        .map(|located| (located.priority, located.weight, located.address.to_string()))
        .collect();
    let expected =
        [(10, 1, "127.0.0.2:8003"), (10, 3, "127.0.0.3:8002"), (10, 3, "[::1]:8002"), (20, 5, "127.0.0.2:8001")];
    assert_eq!(seen, expected.map(|(priority, weight, address)| (priority, weight, address.to_owned())));
    assert!(answer.ttl <= Duration::from_secs(20) && answer.ttl > Duration::from_secs(17), "{:?}", answer.ttl);
    assert_eq!(answer.problem, None);
}

/// What an answer does not enclose: here the targets are aliases, which it does not follow.
#[tokio::test]
async fn targets_of_srv_records_are_looked_up_and_one_without_address_is_said() {
    let records = "_mesh._tcp SRV 1 1 8001 alias\n_mesh._tcp SRV 1 1 8002 nobody\nalias CNAME one\none A 127.0.0.2\n\
                   _none._tcp SRV 0 0 0 .\n_lost._tcp SRV 1 1 8002 nobody";
    let ground = Ground::start(records).await;
    let answer = ground.look_up("srv://_mesh._tcp.mesh.test").await.unwrap();
    let addresses: Vec<_> = answer.endpoints.iter().map(|located| located.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.2:8001"]);
    assert_eq!(answer.problem.unwrap(), "srv://_mesh._tcp.mesh.test: nobody.mesh.test.: DNS has no such name");
    let failure = ground.look_up("srv://_none._tcp.mesh.test").await.unwrap_err();
    assert_eq!(failure.problem, "srv://_none._tcp.mesh.test: its SRV records say that the service is not offered");
    let failure = ground.look_up("srv://_lost._tcp.mesh.test").await.unwrap_err();
    assert!(failure.problem.ends_with("of its SRV records, nobody.mesh.test.: DNS has no such name"), "{failure:?}");
}

/// Aliases again, so that each is asked for.
#[tokio::test]
async fn of_many_targets_128_are_looked_up_and_the_answer_holds_the_longer() {
    let records = (0..140)
        .map(|number| format!("_mesh._tcp 0 SRV 1 1 {} target-{number}\ntarget-{number} 0 CNAME one\n", 8000 + number));
    let ground = Ground::start(&(records.collect::<String>() + "one 0 A 127.0.0.2")).await;
    let answer = ground.look_up("srv://_mesh._tcp.mesh.test").await.unwrap();
    assert_eq!((answer.endpoints.len(), answer.ttl), (128, Duration::from_secs(16)));
    assert_eq!(answer.problem.unwrap(), "srv://_mesh._tcp.mesh.test: of its targets only 128 are looked up");
}

#[tokio::test]
async fn of_more_targets_than_are_looked_up_those_are_used_whose_addresses_came_with_the_answer() {
    let records =
        (0..150).map(|number| format!("_mesh._tcp SRV 1 1 8000 target-{number}\ntarget-{number} A 127.0.1.{number}\n"));
    let ground = Ground::start(&records.collect::<String>()).await;
    let answer = ground.look_up("srv://_mesh._tcp.mesh.test").await.unwrap();
    assert_eq!((answer.endpoints.len(), answer.problem), (150, None));
}

#[tokio::test]
async fn a_name_that_is_not_there_is_said_and_found_once_it_is_and_stays_when_it_goes() {
    let mut ground = Ground::start("").await;
    let discovery = ground.follow(&["api.mesh.test:80"]);
    let found = discovery.first().await.unwrap();
    assert_eq!((shown(&found), found.problem.as_deref()), (vec![], Some("api.mesh.test: DNS has no such name")));
    ground.knot.write("api 1 A 127.0.0.2");
    let found = until(&discovery, "it is found", |found| !found.endpoints.is_empty()).await;
    assert_eq!((shown(&found), found.problem.as_deref()), (vec!["127.0.0.2:80".into()], None));
    ground.knot.write("api 1 TXT gone");
    let found = until(&discovery, "its loss is said", |found| found.problem.is_some()).await;
    assert_eq!(shown(&found), ["127.0.0.2:80"]);
    assert_eq!(found.problem.as_deref(), Some("api.mesh.test: the name has no address; its last addresses stay"));
}

#[tokio::test]
async fn a_name_without_addresses_and_one_in_a_circle_are_failures_with_their_reason() {
    let ground = Ground::start("text TXT hello\none CNAME two\ntwo CNAME one").await;
    for (name, problem) in
        [("text", "the name has no address"), ("one", "the name has no address"), ("no", "DNS has no such name")]
    {
        let failure = ground.look_up(&format!("{name}.mesh.test:80")).await.unwrap_err();
        assert_eq!(failure.problem, format!("{name}.mesh.test: {problem}"));
    }
    let failure = ground.look_up("api.elsewhere.test:80").await.unwrap_err();
    assert_eq!(
        (failure.why, failure.problem.as_str()),
        (Why::Refused, "api.elsewhere.test: DNS answers: Query Refused")
    );
}

#[tokio::test]
async fn addresses_that_nobody_can_have_are_left_out() {
    let ground =
        Ground::start("some A 127.0.0.2\nsome A 224.0.0.1\nsome AAAA ff02::1\nnone A 0.0.0.0\nnone AAAA ::").await;
    let answer = ground.look_up("some.mesh.test:80").await.unwrap();
    assert_eq!(answer.endpoints.len(), 1);
    let said = "some.mesh.test: 224.0.0.1 and 1 more addresses are left out: it is multicast";
    assert_eq!(answer.problem.as_deref(), Some(said));
    let failure = ground.look_up("none.mesh.test:80").await.unwrap_err();
    assert_eq!(failure.why, Why::Unusable);
}

#[tokio::test]
async fn an_answer_too_long_for_udp_comes_over_tcp_whole() {
    let records: Vec<_> = (1..=250).map(|number| format!("many A 127.0.9.{number}")).collect();
    let ground = Ground::start(&records.join("\n")).await;
    let answer = ground.look_up("many.mesh.test:80").await.unwrap();
    assert_eq!((answer.endpoints.len(), answer.problem), (250, None));
}

/// Nearly as long as an answer can be.
#[tokio::test]
async fn of_an_answer_with_thousands_of_addresses_a_thousand_are_used_and_that_is_said() {
    let records: Vec<_> = (0..3900).map(|number| format!("many A 127.1.{}.{}", number / 250, number % 250)).collect();
    let ground = Ground::start(&records.join("\n")).await;
    let found = ground.follow(&["many.mesh.test:80"]).first().await.unwrap();
    assert_eq!(found.endpoints.len(), 1000);
    let said = "many.mesh.test: of 3900 addresses the first 1000 are used";
    assert_eq!(found.problem.as_deref(), Some(said));
}

/// One domain of the list is not served, and of the other it is.
#[tokio::test]
async fn a_search_domain_that_cannot_be_asked_about_does_not_hide_the_next_but_is_said_if_there_is_none() {
    let ground = Ground::start("api A 127.0.0.2").await;
    let at = |mut connection: ConnectionConfig| {
        connection.port = ground.knot.address().port();
        connection
    };
    let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
    let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, connections);
    let search = ["elsewhere.test.", "mesh.test."].map(|domain| domain.parse().unwrap()).to_vec();
    let config = ResolverConfig::from_parts(None, search, vec![server]);
    let servers = Servers::new(config, ResolverOpts::default(), b"").unwrap();
    let answer = look_up(&servers, &address("api:80"), &mut Known::new()).await.unwrap();
    assert_eq!(answer.endpoints.first().unwrap().address, "127.0.0.2:80".parse().unwrap());
    let failure = look_up(&servers, &address("no:80"), &mut Known::new()).await.unwrap_err();
    assert_eq!((failure.why, failure.problem.as_str()), (Why::Refused, "no: DNS answers: Query Refused"));
}

#[tokio::test]
async fn one_server_that_is_silent_and_one_that_refuses_do_not_keep_another_from_answering() {
    let ground = Ground::start("api A 127.0.0.2").await;
    // It takes what is sent to it, and says nothing.
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let other = Knot::serving("other.test", &ground.directory.path().join("other"), free_address(), "").await;
    let (silent, refuses, good) = (silent.local_addr().unwrap(), other.address(), ground.knot.address());
    let pairs = [[silent, good], [good, silent], [refuses, good], [good, refuses]];
    for servers in pairs.iter().map(|pair| &pair[..]).chain([&[refuses, silent, good][..]]) {
        let resolver = asking(ground.directory.path(), servers, &ground.lifecycle);
        let found = resolver.addresses(&address("api.mesh.test:80")).await;
        assert_eq!(found, Ok(vec!["127.0.0.2:80".parse().unwrap()]), "{servers:?}");
    }
    // Of a zone that neither has, both refuse to speak.
    let resolver = asking(ground.directory.path(), &[refuses, good], &ground.lifecycle);
    let refused = resolver.addresses(&address("api.elsewhere.test:80")).await.unwrap_err();
    assert_eq!(refused, "api.elsewhere.test: DNS answers: Query Refused");
}

#[tokio::test]
async fn the_last_addresses_stay_while_the_server_is_away_and_follow_it_when_it_is_back() {
    let mut ground = Ground::start("api 1 A 127.0.0.2").await;
    let discovery = ground.follow(&["api.mesh.test:80"]);
    assert_eq!(shown(&discovery.first().await.unwrap()), ["127.0.0.2:80"]);
    ground.knot.kill();
    let other = address("other.mesh.test:80");
    let said = until(&discovery, "that it is away is said", |found| found.problem.is_some());
    let (found, dialled) = tokio::join!(said, ground.resolver.addresses(&other));
    assert_eq!(shown(&found), ["127.0.0.2:80"]);
    let problem = found.problem.as_deref().unwrap();
    assert!(problem.contains("no DNS server answers") && problem.ends_with("; its last addresses stay"), "{problem}");
    assert!(dialled.unwrap_err().contains("no DNS server answers"));
    ground.knot.run().await;
    ground.knot.write("api 1 A 127.0.0.3");
    let found = until(&discovery, "it is back", |found| shown(found) == ["127.0.0.3:80"]).await;
    assert_eq!(found.problem, None);
}

#[tokio::test]
async fn who_finds_all_dead_has_it_asked_again_at_once_but_not_twice_in_a_second() {
    let mut ground = Ground::start("api 604800 A 127.0.0.2").await;
    let began = Instant::now();
    let discovery = ground.follow(&["api.mesh.test:80"]);
    discovery.first().await.unwrap();
    ground.knot.write("api 604800 A 127.0.0.3");
    let mut watch = discovery.watch();
    watch.mark_unchanged();
    eventually("it is asked again", async || {
        discovery.again();
        if watch.has_changed().unwrap() { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(shown(&discovery.first().await.unwrap()), ["127.0.0.3:80"]);
}

#[tokio::test]
async fn a_list_has_the_addresses_of_all_and_one_that_fails_takes_nothing_from_the_others() {
    let ground = Ground::start("one A 127.0.0.2\none A 127.0.0.3").await;
    let discovery = ground.follow(&["127.0.0.9:80", "no.mesh.test:80", "one.mesh.test:80", "127.0.0.2:80"]);
    let found =
        until(&discovery, "all are asked for", |found| found.problem.is_some() && found.endpoints.len() > 2).await;
    assert_eq!(shown(&found), ["127.0.0.9:80", "127.0.0.2:80", "127.0.0.3:80"]);
    assert_eq!(found.problem.as_deref(), Some("no.mesh.test: DNS has no such name"));
}

#[tokio::test]
async fn nobody_is_asked_any_more_when_nobody_looks() {
    let ground = Ground::start("api 1 A 127.0.0.2").await;
    let discovery = ground.follow(&["api.mesh.test:80"]);
    discovery.first().await.unwrap();
    let resolver = Arc::downgrade(&ground.resolver);
    let followed = resolver.strong_count();
    drop(discovery);
    eventually("its task has ended", async || {
        if resolver.strong_count() < followed { Ok(()) } else { Err("it holds the resolver") }
    })
    .await;
}

#[tokio::test]
async fn who_comes_later_has_the_last_good_addresses_also_while_the_server_is_away() {
    let mut ground = Ground::start("api 1 A 127.0.0.2").await;
    let to = [address("api.mesh.test:80")];
    let (first, second) = (ground.resolver.follow(&to), ground.resolver.follow(&to));
    let found = first.first().await.unwrap();
    ground.knot.kill();
    assert!(Arc::ptr_eq(&found, second.watch().borrow().as_ref().unwrap()), "it is asked for once");
    drop((first, second));
    let later = ground.resolver.follow(&to);
    let found = later.watch().borrow().clone().expect("nobody waits for a look-up");
    assert_eq!(shown(&found), ["127.0.0.2:80"]);
}

#[tokio::test]
async fn what_the_configuration_has_no_more_is_not_followed_any_more_and_the_rest_is() {
    let ground = Ground::start("old 1 A 127.0.0.2\nnew 1 A 127.0.0.3").await;
    let [old, new] = ["old.mesh.test:80", "new.mesh.test:80"].map(address);
    for of in [&old, &new] {
        ground.resolver.addresses(of).await.unwrap();
    }
    let resolver = Arc::downgrade(&ground.resolver);
    let followed = resolver.strong_count();
    ground.resolver.retain(|to| to == [new.clone()]);
    eventually("one task has ended", async || match resolver.strong_count() {
        count if count == followed - 1 => Ok(()),
        count => Err(format!("{count} of {followed} hold the resolver")),
    })
    .await;
    let found = ground.resolver.follow(&[new]).watch().borrow().clone().unwrap();
    assert_eq!(shown(&found), ["127.0.0.3:80"]);
}

#[tokio::test]
async fn a_changed_hosts_file_and_other_servers_are_taken_up_while_it_runs() {
    let ground = Ground::start("api 604800 A 127.0.0.2").await;
    let app = address("app:80");
    let addresses = async |of: &Address| ground.resolver.addresses(of).await.map(|found| found[0].ip().to_string());
    assert!(addresses(&app).await.unwrap_err().starts_with("app: "));
    for ip in ["127.0.0.7", "127.0.0.8"] {
        std::fs::write(ground.directory.path().join("hosts"), format!("{ip} app\n")).unwrap();
        eventually("the hosts file counts", async || match addresses(&app).await {
            Ok(found) if found == ip => Ok(()),
            found => Err(format!("{found:?}")),
        })
        .await;
    }
    let api = address("api.mesh.test:80");
    assert_eq!(addresses(&api).await.unwrap(), "127.0.0.2");
    let other = Knot::start(&ground.directory.path().join("other"), free_address(), "api A 127.0.0.3").await;
    ground.resolver.take_up(Some(&Dns { servers: vec![other.address()] }));
    eventually("the other server is asked", async || match addresses(&api).await {
        Ok(found) if found == "127.0.0.3" => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
}
