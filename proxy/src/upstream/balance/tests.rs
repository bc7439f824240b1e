use std::collections::BTreeSet;
use std::time::Duration;

use countersign_config::Document;
use countersign_identity::TrustDomain;
use countersign_runtime::Lifecycle;
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;

use super::super::endpoint::Group;
use super::super::health::Reason;
use super::*;
use crate::config::{Config, Ejection};
use crate::discovery::Resolver;
use crate::listener::{Common, Listener};
use crate::live::Connections;
use crate::pool::{Pools, Target};
use crate::telemetry::UpstreamMetrics;
use crate::upstream::{Need, Verdict};

/// The members of an upstream, and how many turns there were.
struct Ground {
    members: Vec<Arc<Member>>,
    next: AtomicUsize,
}

impl Ground {
    /// One member for each priority and weight.
    fn of(members: &[(u16, u16)]) -> Self {
        let app = "{ name: a, listen: 0.0.0.0:1, app: 127.0.0.1:2, protocol: http }";
        let document = Document::parse("sidecar.yaml", &format!("inbound: [{app}]\n")).unwrap();
        let domain = TrustDomain::new("a.example").unwrap();
        let config = document.decode(|root| Config::read(&root.table()?, &domain)).unwrap();
        let (_nobody, identity) = watch::channel(None);
        let lifecycle = Lifecycle::new();
        let resolver = Resolver::start(None, &lifecycle);
        let common = Common { identity, resolver, load: Arc::default(), access_log: false, spans: None };
        let listener = Listener::inbound(&config.inbound[0], common);
        let group = Arc::new(Group {
            listener: Arc::clone(&listener.name),
            rule: Ejection::default(),
            metrics: UpstreamMetrics::new(listener.direction, &listener.name),
            born: Instant::now(),
            members: AtomicUsize::new(members.len()),
            failing: AtomicUsize::new(0),
            absent: AtomicUsize::new(0),
        });
        let connections = Arc::new(Connections::default());
        let member = |&(priority, weight): &(u16, u16)| {
            let endpoint = Endpoint::new(None, &group);
            let target = Target::App { address: config.inbound[0].app.clone(), http2: false };
            let pools = Pools::new(target, Arc::clone(&endpoint), Arc::clone(&listener), &connections, &lifecycle, 1);
            Arc::new(Member { endpoint, pools: Arc::new(pools), weight, priority })
        };
        Self { members: members.iter().map(member).collect(), next: AtomicUsize::new(0) }
    }

    fn endpoint(&self, number: usize) -> &Arc<Endpoint> {
        &self.members[number].endpoint
    }

    /// The number of the member that takes the next request, which none of `tried` does.
    fn picks(&self, balance: Balance, tried: &[usize]) -> Option<usize> {
        let mut attempts = Attempts::of(0, Need::Any);
        tried.iter().for_each(|number| attempts.try_at(self.endpoint(*number)));
        let picked = pick(&self.members, balance, &self.next, &attempts, Instant::now())?;
        self.members.iter().position(|member| Arc::ptr_eq(member, picked))
    }

    /// Which members have some of very many requests at once.
    fn takes(&self, balance: Balance) -> Vec<usize> {
        let under_way: Vec<_> = (0..400)
            .map(|_| {
                let picked = self.picks(balance, &[]).unwrap();
                self.endpoint(picked).enter();
                picked
            })
            .collect();
        under_way.iter().for_each(|picked| self.endpoint(*picked).leave());
        BTreeSet::from_iter(under_way).into_iter().collect()
    }

    /// Which members might have the next request.
    fn might_take(&self, balance: Balance) -> Vec<usize> {
        let picked = (0..100).map(|_| self.picks(balance, &[]).unwrap());
        picked.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn goes_out(&self, number: usize) {
        self.endpoint(number).eject(Reason::Unreachable, "it is not there");
    }

    /// It asks to be left alone for half a minute.
    fn is_held(&self, number: usize) {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", 30.into());
        headers.insert("x-countersign-fault", "client".parse().unwrap());
        let busy = Verdict::of(StatusCode::SERVICE_UNAVAILABLE, &headers);
        self.endpoint(number).answered(&busy, None);
        assert!(self.endpoint(number).is_held(Instant::now()));
    }
}

const ALL: [Balance; 4] = [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::LeastConnections];

#[tokio::test]
async fn the_lowest_priority_number_takes_all_until_none_of_it_is_in() {
    for balance in ALL {
        let ground = Ground::of(&[(2, 1), (1, 1), (1, 1), (3, 1)]);
        assert_eq!(ground.takes(balance), [1, 2], "{balance:?}");
        ground.goes_out(1);
        assert_eq!(ground.takes(balance), [2], "{balance:?}");
        ground.goes_out(2);
        assert_eq!(ground.takes(balance), [0], "{balance:?}");
        ground.endpoint(1).comes_back("it is there");
        assert_eq!(ground.takes(balance), [1], "{balance:?}");
    }
}

#[tokio::test]
async fn who_asks_to_be_left_alone_is_not_gone_and_leaves_nothing_to_the_next_priority() {
    for balance in ALL {
        let ground = Ground::of(&[(1, 1), (1, 1), (2, 1)]);
        ground.is_held(0);
        assert_eq!(ground.takes(balance), [1], "{balance:?}");
        // Where all of a priority ask for it, they are asked all the same.
        ground.is_held(1);
        assert_eq!(ground.takes(balance), [0, 1], "{balance:?}");
    }
}

#[tokio::test]
async fn one_of_three_times_the_weight_has_three_times_the_requests_under_way() {
    for balance in [Balance::LeastRequest, Balance::PeakEwma, Balance::LeastConnections] {
        let ground = Ground::of(&[(1, 3), (1, 1)]);
        for _ in 0..400 {
            ground.endpoint(ground.picks(balance, &[]).unwrap()).enter();
        }
        let under_way = ground.endpoint(0).in_flight();
        assert!((290..=310).contains(&under_way), "{balance:?}: {under_way} of 400");
    }
}

#[tokio::test]
async fn of_two_with_as_many_requests_latency_decides_where_it_counts() {
    let ground = Ground::of(&[(1, 1), (1, 1)]);
    let fine = Verdict::of(StatusCode::OK, &HeaderMap::new());
    for (number, took) in [(0, 2), (1, 900)] {
        ground.endpoint(number).enter();
        ground.endpoint(number).answered(&fine, Some(Duration::from_millis(took)));
    }
    assert_eq!(ground.might_take(Balance::PeakEwma), [0]);
    assert_eq!(ground.might_take(Balance::LeastRequest), [0, 1]);
    // One more there, and it is the other's turn, however long that might_take.
    ground.endpoint(0).enter();
    assert_eq!(ground.might_take(Balance::PeakEwma), [0]);
    assert_eq!(ground.might_take(Balance::LeastRequest), [1]);
}

#[tokio::test]
async fn where_none_is_in_one_is_asked_all_the_same_whatever_its_priority() {
    for balance in ALL {
        let ground = Ground::of(&[(1, 1), (2, 1)]);
        ground.goes_out(0);
        ground.goes_out(1);
        assert_eq!(ground.takes(balance), [0, 1], "{balance:?}");
        assert_eq!(ground.picks(balance, &[0]), Some(1), "{balance:?}");
    }
}

#[tokio::test]
async fn none_is_asked_a_second_time_and_in_the_end_none_at_all() {
    for balance in ALL {
        let ground = Ground::of(&[(1, 1), (1, 1), (2, 1)]);
        for _ in 0..100 {
            assert_eq!(ground.picks(balance, &[0]), Some(1), "{balance:?}");
            assert_eq!(
                ground.picks(balance, &[0, 1]),
                Some(2),
                "{balance:?}: the next priority is better than nothing"
            );
            assert_eq!(ground.picks(balance, &[0, 1, 2]), None, "{balance:?}");
        }
        ground.is_held(1);
        assert_eq!(ground.picks(balance, &[0]), Some(1), "{balance:?}: it was asked for the last time");
    }
}

#[tokio::test]
async fn turns_go_round_those_that_are_in() {
    let ground = Ground::of(&[(1, 1), (1, 1), (1, 1)]);
    let turns = |ground: &Ground| (0..6).map(|_| ground.picks(Balance::RoundRobin, &[]).unwrap()).collect::<Vec<_>>();
    assert_eq!(turns(&ground), [0, 1, 2, 0, 1, 2]);
    ground.goes_out(1);
    assert_eq!(turns(&ground), [0, 2, 0, 2, 0, 2], "who follows it has no more turns for that");
    ground.endpoint(1).comes_back("it is there");
    assert_eq!(turns(&ground), [0, 1, 2, 0, 1, 2]);
}

/// Ten of eleven is hardly less than eleven.
#[tokio::test]
async fn weights_are_shares_also_where_requests_come_one_by_one() {
    for (weights, least, most) in [([11, 10], 350, 600), ([3, 1], 150, 350), ([1, 1], 400, 600)] {
        let ground = Ground::of(&weights.map(|weight| (1, weight)));
        let lighter = (0..1000).filter(|_| ground.picks(Balance::LeastRequest, &[]) == Some(1)).count();
        assert!((least..=most).contains(&lighter), "{lighter} of 1000 went to the lighter of {weights:?}");
    }
}
