//! What the data path adds to the admin endpoint: `/ready`, `/identity`, `/config`, `/upstreams`, `/decisions` and
//! `/drain`.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::IdentityWatch;
use countersign_policy::{Operations, PathPattern};
use countersign_runtime::Lifecycle;
use countersign_runtime::admin::{Admin, Answer, Readiness, json, text};
use countersign_runtime::telemetry::Metrics;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{
    AcceptProxyProtocol, Admission, Ask, Check, Config, Ejection, Limits, Mirror, Of, PolicyFrom, Protocol, Retry,
    Route, Split, Times, Tracing,
};
use crate::decisions::Decisions;
use crate::live::Connections;
use crate::source::{EnforcedWatch, Waiting};

/// Tells whether the process can do its work.
pub(crate) type Ready = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// What has to hold before the process can do its work.
pub(crate) struct Needs {
    pub(crate) enforced: EnforcedWatch,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) ready: Vec<Box<dyn Fn() -> Readiness + Send + Sync>>,
    /// Cancelled when another process does the work: it is ready, and who is connected here asks for that.
    pub(crate) relieved: CancellationToken,
    pub(crate) lifecycle: Lifecycle,
}

impl Needs {
    pub(crate) fn ready(self) -> Ready {
        let Self { enforced, waiting, ready, relieved, lifecycle } = self;
        Arc::new(move || {
            if relieved.is_cancelled() {
                return Ok(());
            }
            let mut reasons: Vec<String> = waiting.iter().filter_map(Waiting::reason).collect();
            let received = enforced.borrow().as_ref().is_some_and(|enforced| enforced.was_received());
            if reasons.is_empty() && !received {
                reasons.push("policy: it is being compiled".to_owned());
            }
            reasons.extend(ready.iter().filter_map(|ready| ready().err()).flatten());
            if lifecycle.is_draining() {
                reasons.push("draining".to_owned());
            }
            if reasons.is_empty() { Ok(()) } else { Err(reasons) }
        })
    }
}

/// What the admin endpoint shows.
pub(crate) struct Console {
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) identity: IdentityWatch,
    pub(crate) ready: Ready,
    pub(crate) decisions: Arc<Decisions>,
    pub(crate) connections: Arc<Connections>,
    /// Nobody is answered before.
    pub(crate) in_charge: CancellationToken,
    /// Another process answers from then on.
    pub(crate) ended: CancellationToken,
    pub(crate) lifecycle: Lifecycle,
}

impl Console {
    /// Serves until the process stops, or another does.
    pub(crate) async fn serve(self, listener: Arc<TcpListener>, metrics: Metrics) {
        let Self { config, identity, ready, decisions, connections, in_charge, ended, lifecycle } = self;
        tokio::select! {
            () = lifecycle.stopping() => return,
            () = in_charge.cancelled() => {}
        }
        let life = lifecycle.clone();
        Admin::new(metrics, move || ready())
            .route(Method::GET, "/identity", move || ready_made(show_identity(&identity)))
            .route(Method::GET, "/config", move || ready_made(show_config(&config.borrow())))
            .route(Method::GET, "/upstreams", move || {
                let upstreams = connections.upstreams();
                let shown: Value = upstreams.iter().map(|upstream| upstream.show()).collect();
                ready_made(json(StatusCode::OK, &shown))
            })
            .route(Method::GET, "/decisions", move || ready_made(json(StatusCode::OK, &decisions.to_json())))
            .route(Method::POST, "/drain", move || {
                life.drain();
                ready_made(text(StatusCode::ACCEPTED, "draining\n"))
            })
            .serve_until(listener, ended, lifecycle)
            .await;
    }
}

fn ready_made(answer: Answer) -> std::future::Ready<Answer> {
    std::future::ready(answer)
}

/// Who we are and whom we trust; never the key.
fn show_identity(identity: &IdentityWatch) -> Answer {
    let Some(identity) = identity.borrow().clone() else {
        return json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "spiffe_id": null }));
    };
    let domains: Vec<String> = identity.bundles.iter().map(|(domain, _)| domain.to_string()).collect();
    let svid = &identity.svid;
    json(
        StatusCode::OK,
        &json!({
            "spiffe_id": svid.id().to_string(),
            "not_before": svid.not_before().as_secs(),
            "not_after": svid.not_after().as_secs(),
            "serial": svid.serial(),
            "trust_domains": domains,
        }),
    )
}

fn show_accepted(accepts: Option<&AcceptProxyProtocol>) -> Value {
    let others = |accepts: &AcceptProxyProtocol| if accepts.others_are_refused() { "refuse" } else { "direct" };
    accepts.map_or(
        Value::Null,
        |accepts| json!({ "from": accepts.networks().collect::<Vec<_>>(), "others": others(accepts) }),
    )
}

/// Under the keys of the file, which counts connections where nothing else is known.
fn show_admission(admission: &Admission, protocol: Protocol) -> [Value; 2] {
    let counted = if protocol == Protocol::Tcp { "connections" } else { "requests" };
    let rates = admission.rates.iter().map(|rate| {
        let each = (rate.of == Of::Identity).then_some("identity");
        json!({ counted: rate.number, "per": rate.per.as_secs_f64(), "burst": rate.burst, "each": each })
    });
    let concurrency = admission.concurrency.map(|concurrency| {
        json!({ counted: concurrency.at_once, "per_identity": concurrency.of_one, "queue": concurrency.queue, "wait": concurrency.wait.as_secs_f64() })
    });
    [rates.collect(), json!(concurrency)]
}

fn show_tracing(tracing: &Tracing) -> Value {
    json!({
        "endpoint": format!("http://{}", tracing.endpoint),
        "sample": tracing.sample,
        "service": tracing.service,
    })
}

fn show_limits(limits: &Limits) -> Value {
    let mut shown = json!({
        "connections": limits.connections,
        "requests": limits.requests,
        "streams": limits.streams,
        "headers": limits.headers,
        "header_bytes": limits.header_bytes,
        "handshake": limits.handshake.as_secs_f64(),
        "head": limits.head.as_secs_f64(),
        "connect": limits.connect.as_secs_f64(),
    });
    if let (Value::Object(shown), Value::Object(times)) = (&mut shown, show_times(&limits.times)) {
        shown.extend(times);
    }
    shown
}

fn show_times(times: &Times) -> Value {
    let shown = |limit: Option<Duration>| limit.map_or(json!("never"), |limit| json!(limit.as_secs_f64()));
    json!({ "first_byte": shown(times.first_byte), "idle": shown(times.idle), "total": shown(times.total) })
}

fn show_route(route: &Route) -> Value {
    let (methods, paths) = match &route.operations {
        Operations::Http { methods, paths } => (methods.as_deref(), paths.as_deref()),
        Operations::Tcp => (None, None),
    };
    let paths: Option<Vec<&str>> = paths.map(|paths| paths.iter().map(PathPattern::as_str).collect());
    json!({
        "name": route.name.as_deref(),
        "methods": methods,
        "paths": paths,
        "limits": show_times(&route.times),
        "mirror": route.mirror.map(|percent| json!({ "percent": percent })),
    })
}

fn show_split(split: &Split) -> Value {
    json!({
        "percent": split.percent,
        "to": split.to.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "identity": split.identity.to_string(),
    })
}

fn show_mirror(mirror: &Mirror) -> Value {
    json!({
        "percent": mirror.percent,
        "to": mirror.to.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "identity": mirror.identity.to_string(),
        "body_bytes": mirror.body_bytes,
        "requests": mirror.requests,
        "timeout": mirror.timeout.as_secs_f64(),
    })
}

fn show_ejection(ejection: &Ejection) -> Value {
    json!({
        "failures": ejection.failures,
        "behind_percent": ejection.behind,
        "backoff": ejection.backoff.as_secs_f64(),
        "longest": ejection.longest.as_secs_f64(),
    })
}

fn show_check(check: &Check) -> Value {
    let (kind, asked) = match &check.ask {
        Ask::Http(path) => ("http", json!(path)),
        Ask::Grpc(service) => ("grpc", json!(if service.is_empty() { "all" } else { service })),
        Ask::Connect => ("connect", json!(true)),
    };
    json!({
        kind: asked,
        "interval": check.interval.as_secs_f64(),
        "timeout": check.timeout.as_secs_f64(),
        "unhealthy": check.unhealthy,
        "healthy": check.healthy,
    })
}

fn show_retry(retry: &Retry) -> Value {
    json!({
        "attempts": retry.attempts,
        "methods": retry.methods.iter().map(Method::as_str).collect::<Vec<_>>(),
        "statuses": retry.statuses,
        "body_bytes": retry.body_bytes,
        "budget_percent": retry.budget_percent,
    })
}

/// The configuration in force. It holds no secret.
fn show_config(config: &Config) -> Answer {
    let inbound = config.inbound.iter().map(|inbound| {
        let [rates, concurrency] = show_admission(&inbound.admission, inbound.protocol);
        json!({
            "name": inbound.name,
            "listen": inbound.listen.to_string(),
            "app": inbound.app.to_string(),
            "protocol": inbound.protocol.as_str(),
            "paths": inbound.paths.as_str(),
            "accept_proxy_protocol": show_accepted(inbound.accept_proxy_protocol.as_ref()),
            "send_proxy_protocol": inbound.send_proxy_protocol.then_some("v2"),
            "rate_limits": rates,
            "concurrency": concurrency,
            "limits": show_limits(&inbound.limits),
            "routes": inbound.routes.iter().map(show_route).collect::<Value>(),
        })
    });
    let outbound = config.outbound.iter().map(|outbound| {
        let [rates, concurrency] = show_admission(&outbound.admission, outbound.protocol);
        json!({
            "name": outbound.name,
            "listen": outbound.listen.to_string(),
            "to": outbound.to.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "identity": outbound.identity.to_string(),
            "protocol": outbound.protocol.as_str(),
            "paths": outbound.paths.as_str(),
            "split": outbound.split.iter().map(show_split).collect::<Value>(),
            "mirror": outbound.mirror.as_ref().map(show_mirror),
            "balance": outbound.balance.as_str(),
            "ejection": show_ejection(&outbound.ejection),
            "check": outbound.check.as_ref().map(show_check),
            "retry": show_retry(&outbound.retry),
            "accept_proxy_protocol": show_accepted(outbound.accept_proxy_protocol.as_ref()),
            "rate_limits": rates,
            "concurrency": concurrency,
            "limits": show_limits(&outbound.limits),
            "routes": outbound.routes.iter().map(show_route).collect::<Value>(),
        })
    });
    let policy = match &config.policy {
        PolicyFrom::Authority => "from-authority".to_owned(),
        PolicyFrom::File(file) => file.display().to_string(),
    };
    json(
        StatusCode::OK,
        &json!({
            "trust_domain": config.trust_domain.to_string(),
            "inbound": inbound.collect::<Value>(),
            "outbound": outbound.collect::<Value>(),
            "dns": config.dns.as_ref().map(|dns| dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>()),
            "policy": policy,
            "admin": { "listen": config.admin.to_string() },
            "drain": {
                "grace": config.drain.grace.as_secs_f64(),
                "idle": config.drain.idle.map(|idle| idle.as_secs_f64()),
            },
            "takeover": config.takeover.as_ref().map(|takeover| {
                json!({ "socket": takeover.socket.display().to_string(), "within": takeover.within.as_secs_f64() })
            }),
            "access_log": config.access_log,
            "tracing": config.tracing.as_ref().map(show_tracing),
            "limits": show_limits(&config.limits),
        }),
    )
}
