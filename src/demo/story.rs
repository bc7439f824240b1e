//! The story that the demo tells, one verb a step: ask, deny, change a secret, rotate, report.

use std::time::{Duration, Instant};

use super::report::{Denied, Report, Rotation, SecretChange, narrator};
use super::service::Name;
use super::traffic::{self, Traffic};
use super::world::{SECRET, TRUST_DOMAIN, World};
use super::{fingerprint, observe};
use crate::exit::Failure;

/// How long the secret may take to be used, and all certificates to rotate.
const PATIENCE: Duration = Duration::from_secs(40);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Tells the story. `None` if a child ended while it was told.
pub(crate) async fn tell(world: &mut World, narrate: bool) -> Result<Option<Report>, Failure> {
    let say = narrator(narrate);
    let first_answer = first_answer(world).await?;
    say(&format!(
        "the first answer came over mutual TLS, {} ms after the authority was started",
        first_answer.as_millis()
    ));

    let app = world.place(Name::App).app;
    let traffic = Traffic::start(app, 3 * PATIENCE)?;
    let watch = watch_certificates(world, &traffic);
    let events = async {
        let denied = deny(world).await?;
        say(&format!("app called evals directly and got {}: {}", denied.status, denied.why));
        let change = change_secret(world).await?;
        say(&format!("a secret changed in its backend and was in use {} ms later", change.took_ms));
        Ok::<_, Failure>((denied, change))
    };
    let (events, rotations) = tokio::join!(events, watch);
    let ((denied, change), rotations) = (events?, rotations?);
    say("every certificate was rotated under load");
    let outcome = traffic.stop().await;

    Ok(Some(Report {
        ready_ms: world.ready_after.as_millis(),
        first_answer_ms: first_answer.as_millis(),
        requests: outcome.sent,
        failed_requests: outcome.failed,
        first_failure: outcome.first_failure,
        edges: observe::edges(world),
        denied: vec![denied],
        rotations,
        secrets: vec![change],
    }))
}

async fn first_answer(world: &World) -> Result<Duration, Failure> {
    let app = world.place(Name::App).app;
    let client = reqwest::Client::new();
    traffic::ask(&client, app).await.map_err(|why| Failure::failed("the first question was not answered", why))?;
    Ok(world.began.elapsed())
}

/// `app` calls `evals`, which no rule allows.
async fn deny(world: &World) -> Result<Denied, Failure> {
    let failed = |why: String| Failure::failed("the call that policy denies", why);
    let url = format!("http://{}/direct", world.place(Name::App).app);
    let response = reqwest::get(url).await.map_err(|error| failed(error.to_string()))?;
    let status = response.status().as_u16();
    let header = response.headers().get("x-countersign-decision").and_then(|value| value.to_str().ok());
    let decision = header.ok_or_else(|| failed(format!("was answered {status} without a decision")))?.to_owned();
    let why = observe::explanation(world.place(Name::Evals).admin, &decision).await.map_err(failed)?;
    let id = |name: &str| format!("spiffe://{TRUST_DOMAIN}/ns/demo/sa/{name}");
    Ok(Denied { from: id("app"), to: id("evals"), request: "POST /evaluate".into(), status, decision, why })
}

/// A new value in the backend; then waits until the service says that it uses it.
async fn change_secret(world: &World) -> Result<SecretChange, Failure> {
    let failed = |why: String| Failure::failed("the change of the secret", why);
    let value = "sk-demo-second-value";
    let url = format!("http://{}/-/secret", world.place(Name::Nlp).app);
    let client = reqwest::Client::new();
    let changed = Instant::now();
    world.write(&format!("backend/{SECRET}"), value)?;
    while changed.elapsed() < PATIENCE {
        let body = client.get(&url).send().await.map_err(|error| failed(error.to_string()))?;
        let body = body.text().await.map_err(|error| failed(error.to_string()))?;
        if body.contains(&fingerprint(value.as_bytes())) {
            return Ok(SecretChange { secret: SECRET, service: "nlp", took_ms: changed.elapsed().as_millis() });
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(failed("was not taken up".into()))
}

/// Looks at the certificate of every sidecar until each has shown a second one.
async fn watch_certificates(world: &World, traffic: &Traffic) -> Result<Vec<Rotation>, Failure> {
    let before = traffic.so_far();
    let mut rotations: Vec<Rotation> = Vec::new();
    for place in world.places() {
        let service = place.name.as_str();
        rotations.push(Rotation { service, certificates: Vec::new(), requests_meanwhile: 0, failed_meanwhile: 0 });
    }
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end && rotations.iter().any(|rotation| rotation.certificates.len() < 2) {
        for (rotation, place) in rotations.iter_mut().zip(world.places()) {
            let serial = observe::serial(place.admin).await;
            let serial = serial.map_err(|why| Failure::failed(format!("the identity of {}", rotation.service), why))?;
            if rotation.certificates.last() != Some(&serial) {
                rotation.certificates.push(serial);
                let now = traffic.so_far();
                rotation.requests_meanwhile = now.sent - before.sent;
                rotation.failed_meanwhile = now.failed - before.failed;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(rotations)
}
