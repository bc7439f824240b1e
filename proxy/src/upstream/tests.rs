use std::sync::mpsc;
use std::thread;

use countersign_config::Document;
use countersign_identity::TrustDomain;

use super::*;
use crate::config::Config;
use crate::discovery::Resolver;
use crate::listener::Common;

/// Who looks at the endpoints twice while they change would wait for the change, which would wait for it.
#[test]
fn requests_that_find_no_endpoint_and_changes_do_not_wait_for_each_other() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let upstream = {
        let _entered = handle.enter();
        let app = "{ name: a, listen: 0.0.0.0:1, app: 127.0.0.1:2, protocol: http }";
        let document = Document::parse("sidecar.yaml", &format!("inbound: [{app}]\n")).unwrap();
        let domain = TrustDomain::new("a.example").unwrap();
        let config = document.decode(|root| Config::read(&root.table()?, &domain)).unwrap();
        let (_nobody, identity) = watch::channel(None);
        let (lifecycle, connections) = (Lifecycle::new(), Arc::default());
        let resolver = Resolver::start(None, &lifecycle);
        let common = Common { identity, resolver, load: Arc::default(), access_log: false, spans: None };
        let inbound = &config.inbound[0];
        let listener = Listener::inbound(inbound, common);
        Upstream::app(&inbound.app, inbound.protocol, listener, &connections, &lifecycle, 1)
    };
    let none = |number: usize| Members { all: [].into(), known: true, problem: Some(number.to_string()) };
    upstream.set(none(0));
    let (ended, all_ended) = mpsc::channel();
    for thread in 0..3 {
        let (upstream, handle, ended) = (Arc::clone(&upstream), handle.clone(), ended.clone());
        thread::spawn(move || {
            for number in 0..20_000 {
                if thread == 0 {
                    upstream.set(none(number));
                } else {
                    let attempts = Attempts::of(0, Need::Any);
                    assert!(handle.block_on(upstream.pick_when_known(&attempts)).is_err());
                }
            }
            ended.send(()).unwrap();
        });
    }
    for _ in 0..3 {
        all_ended.recv_timeout(Duration::from_secs(60)).expect("they wait for each other");
    }
}
