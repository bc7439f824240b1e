//! `countersign ca`: what the operator of the authority types, and what is printed.

use countersign_ca::token::TokenError;
use countersign_ca::workloads::WorkloadsError;
use countersign_ca::{Attestor, Config, Init, InitError, Registration, RunError, Status};
use serde_json::json;

use crate::cli::{BundleFormat, Ca, CaAgent, CaAudit, CaBundle, CaInit, CaRun, CaToken, CaTokenCreate, CaWorkload};
use crate::exit::Failure;
use crate::signals;

/// Runs one `ca` command.
pub(crate) async fn run(command: Ca) -> Result<(), Failure> {
    match command {
        Ca::Init(options) => init(options).await,
        Ca::Run(options) => serve(options).await,
        Ca::Token(CaToken::Create(options)) => create_token(options).await,
        Ca::Workload(command) => workload(command),
        Ca::Bundle(CaBundle::Show(options)) => {
            let config = Config::load(&options.file.config)?;
            let failed = |error| Failure::failed("the trust bundle cannot be shown", error);
            match options.format {
                BundleFormat::Pem => put(countersign_ca::bundle::pem(&config).await.map_err(failed)?.trim_end()),
                BundleFormat::Spiffe => {
                    put(&format!("{:#}", countersign_ca::bundle::spiffe(&config).await.map_err(failed)?))
                }
            }
            Ok(())
        }
        Ca::Agent(CaAgent::Evict(options)) => {
            let config = Config::load(&options.file.config)?;
            let evicted = countersign_ca::agents::evict(&config, &options.thumbprint).await;
            let evicted = evicted.map_err(|error| Failure::failed("no agent was evicted", error))?;
            put(&format!("evicted {} of {}", evicted.thumbprint, evicted.spiffe_id));
            Ok(())
        }
        Ca::Audit(options) => audit(options).await,
        Ca::Status(options) => {
            let config = Config::load(&options.file.config)?;
            let status = countersign_ca::status(&config).await;
            let status = status.map_err(|error| Failure::failed("the status cannot be read", error))?;
            if options.json {
                put(&to_json(&status)?)
            } else {
                print_status(&status)
            }
            Ok(())
        }
    }
}

async fn init(options: CaInit) -> Result<(), Failure> {
    let trust_domain =
        options.trust_domain.parse().map_err(|error| Failure::usage(format!("--trust-domain: {error}")))?;
    let mut init = Init::new(&options.directory, trust_domain);
    init.listen = options.listen;
    init.dns = options.dns;
    let made = countersign_ca::init(&init).await.map_err(|error| match error {
        InitError::Dns(_) => Failure::usage(format!("--dns: {error}")),
        error => Failure::failed("no authority was made", error),
    })?;
    put(&format!("made the authority of {} in {}", options.trust_domain, options.directory.display()));
    put(&format!("  its trust bundle, for every sidecar: {}", made.bundle.display()));
    put(&format!("  to run it: countersign ca run -c {}", made.config.display()));
    Ok(())
}

async fn serve(options: CaRun) -> Result<(), Failure> {
    let config = Config::load(&options.file.config)?;
    if options.check {
        countersign_ca::check(&config).await?;
        put(&format!("{}: no problem", options.file.config.display()));
        return Ok(());
    }
    let (lifecycle, metrics) = signals::begin()?;
    let ended = countersign_ca::run(config, lifecycle.clone(), metrics).await;
    lifecycle.stop();
    lifecycle.finished().await;
    ended.map_err(|error| match error {
        RunError::Problems(problems) => Failure::Configuration(problems),
        error => Failure::failed("the authority", error),
    })
}

async fn create_token(options: CaTokenCreate) -> Result<(), Failure> {
    let config = Config::load(&options.file.config)?;
    let token = countersign_ca::token::create(&config, &options.service, options.ttl, options.uses).await;
    let token = token.map_err(|error| match error {
        TokenError::Service(_) | TokenError::Ttl(_) | TokenError::Uses(_) => Failure::usage(error.to_string()),
        TokenError::Registrations(problems) => Failure::Configuration(problems),
        error => Failure::failed("no token was made", error),
    })?;
    // The one place where it is shown; the file that it is put into is the operator's to guard.
    put(token.secret());
    Ok(())
}

async fn audit(options: CaAudit) -> Result<(), Failure> {
    let config = Config::load(&options.file.config)?;
    let failed = |error: &dyn std::fmt::Display| Failure::failed("the audit", error);
    if options.verify {
        let verified = countersign_ca::audit::verify(&config).await.map_err(|error| failed(&error))?;
        put(&format!("{} rows, the head is {}", verified.rows, verified.head));
        return Ok(());
    }
    for entry in
        countersign_ca::audit::read(&config, options.after, options.limit).await.map_err(|error| failed(&error))?
    {
        if options.json {
            put(&serde_json::to_string(&entry).map_err(|error| failed(&error))?);
            continue;
        }
        let said = [&entry.reason, &entry.spiffe_id, &entry.serial, &entry.detail];
        let said = said.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("  ");
        put(&format!(
            "{}  {}  {}  {said}  from {}",
            entry.sequence,
            moment(entry.at_ms / 1000),
            entry.event,
            entry.source
        ));
    }
    Ok(())
}

fn workload(command: CaWorkload) -> Result<(), Failure> {
    match command {
        CaWorkload::List(options) => {
            let registrations = countersign_ca::workloads::list(&Config::load(&options.file.config)?)?;
            if options.json {
                put(&to_json(&registrations.iter().map(as_json).collect::<Vec<_>>())?);
            } else {
                registrations.iter().for_each(|registration| put(&as_line(registration)));
            }
        }
        CaWorkload::Show(options) => {
            let config = Config::load(&options.file.config)?;
            let registration = countersign_ca::workloads::show(&config, &options.id).map_err(workloads_failure)?;
            put(&if options.json { to_json(&as_json(&registration))? } else { as_line(&registration) });
        }
        CaWorkload::Apply(options) => {
            let config = Config::load(&options.file.config)?;
            let applied = countersign_ca::workloads::apply(&config, &options.workloads).map_err(workloads_failure)?;
            put(&format!("{}: {} registrations", config.workloads.display(), applied.len()));
        }
    }
    Ok(())
}

fn workloads_failure(error: WorkloadsError) -> Failure {
    match error {
        WorkloadsError::Problems(problems) => Failure::Configuration(problems),
        error => Failure::Failed(error.to_string()),
    }
}

fn as_json(registration: &Registration) -> serde_json::Value {
    let attest = match &registration.attest {
        Attestor::JoinToken => json!({ "join_token": {} }),
        Attestor::Unix { uid, gid, path } => json!({ "unix": { "uid": uid, "gid": gid, "path": path } }),
    };
    json!({
        "id": registration.id.to_string(),
        "attest": attest,
        "dns": registration.dns,
        "ttl_seconds": registration.ttl.map(|ttl| ttl.as_secs()),
    })
}

fn as_line(registration: &Registration) -> String {
    let mut line = format!("{}  attest {}", registration.id, registration.attest.name());
    if let Attestor::Unix { uid, gid, path } = &registration.attest {
        let selectors = [
            uid.map(|uid| format!("uid {uid}")),
            gid.map(|gid| format!("gid {gid}")),
            path.as_ref().map(|path| format!("path {}", path.display())),
        ];
        line += &format!(" ({})", selectors.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    if let Some(ttl) = registration.ttl {
        line += &format!("  ttl {}", humantime::format_duration(ttl));
    }
    if !registration.dns.is_empty() {
        line += &format!("  dns {}", registration.dns.join(", "));
    }
    line
}

fn print_status(status: &Status) {
    put(&format!("authority of {}: {}", status.trust_domain, if status.running { "running" } else { "not running" }));
    put(&format!("  signing key {} until {}", status.key_id, moment(status.not_after)));
    match status.registrations {
        Some(count) => put(&format!("  {count} registrations, generation {}", status.generation)),
        None => put(&format!("  registrations: workloads.yaml is broken; generation {}", status.generation)),
    }
    for agent in &status.agents {
        let state = if agent.connected { "connected" } else { "away" };
        put(&format!(
            "  {}  {state}  last seen {}  acknowledged {}  by {}  key {}",
            agent.spiffe_id,
            moment(agent.last_seen),
            agent.acknowledged,
            agent.method,
            agent.thumbprint.get(..16).unwrap_or(&agent.thumbprint),
        ));
    }
}

/// A Unix time in RFC 3339.
fn moment(seconds: i64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.max(0).unsigned_abs());
    humantime::format_rfc3339_seconds(time).to_string()
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| Failure::failed("cannot be shown as JSON", error))
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn put(line: &str) {
    println!("{line}");
}
