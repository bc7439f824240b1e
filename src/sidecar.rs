//! `countersign sidecar`, `proxy` and `agent`: one file, of which each takes its part.
//!
//! The sidecar is nothing but an agent and a proxy in one process: the proxy asks the agent's unix socket, as any other
//! client of the Workload API would.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_agent::{Agent, AgentError, AuthorityConfig, Config as AgentConfig, Files, Source};
use countersign_config::{Changes, Document, Patient, Problems};
use countersign_identity::TrustDomain;
use countersign_policy::Policy;
use countersign_proxy::{
    Config as ProxyConfig, IdentityFiles, IdentityFrom, PolicyFrom, ProxyError, Succession, Surroundings,
};
use countersign_runtime::admin::{Admin, Readiness, until_ready};
use countersign_runtime::takeover::TakeoverError;
use countersign_runtime::{Lifecycle, Workers, supervisor};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::cli::{Agent as AgentOptions, ConfigFile, Serve};
use crate::exit::Failure;
use crate::job::Job;
use crate::signals;

/// How long a single run waits for a backend that does not answer.
const ONCE: Duration = Duration::from_secs(60);

/// The parts of the file.
struct File {
    agent: AgentConfig,
    proxy: ProxyConfig,
}

impl File {
    /// Where the proxy's identity comes from.
    fn identity(&self) -> IdentityFrom {
        match &self.agent.identity {
            Source::Authority(AuthorityConfig { socket: endpoint, .. }) | Source::WorkloadApi(endpoint) => {
                IdentityFrom::WorkloadApi(endpoint.to_string())
            }
            Source::Files(Files { cert, key, bundle }) => {
                let (cert, key, bundle) = (cert.clone(), key.clone(), bundle.clone());
                IdentityFrom::Files(IdentityFiles { cert, key, bundle })
            }
        }
    }
}

/// Runs agent and proxy, and the app where one is given.
pub(crate) async fn sidecar(options: &Serve, workers: Workers) -> Result<(), Failure> {
    let path = &options.file.config;
    // Watched before it is read, so that no change is missed.
    let changes = Changes::new([path.clone()]);
    let Some(file) = read_or_check(&options.file)? else { return Ok(()) };
    let mut succession = succeed(options, &file).await?;
    let (lifecycle, metrics) = signals::begin()?;
    let identity = file.identity();
    let agent = Agent::start_after(file.agent.clone(), &lifecycle, succession.in_charge());
    let agent = agent.map_err(|error| agent_failure(path, error))?;
    let ready = agent.ready();
    let ready: Vec<Box<dyn Fn() -> _ + Send + Sync>> = vec![Box::new(move || ready.now())];
    succession.on_letting_go(move || {
        let agent = agent.clone();
        Box::pin(async move { agent.let_go().await })
    });
    serve(file, changes, options, Surroundings { identity, metrics, lifecycle, workers, ready, succession, app: None })
        .await
}

/// Runs the proxy alone: its identity comes from whatever serves the Workload API, or from files.
pub(crate) async fn proxy(options: &Serve, workers: Workers) -> Result<(), Failure> {
    let changes = Changes::new([options.file.config.clone()]);
    let Some(file) = read_or_check(&options.file)? else { return Ok(()) };
    let succession = succeed(options, &file).await?;
    let (lifecycle, metrics) = signals::begin()?;
    let (identity, ready) = (file.identity(), Vec::new());
    serve(file, changes, options, Surroundings { identity, metrics, lifecycle, workers, ready, succession, app: None })
        .await
}

/// Finds the process that this one takes over from, if there is one.
async fn succeed(options: &Serve, file: &File) -> Result<Succession, Failure> {
    let takeover = file.proxy.takeover.clone();
    if takeover.is_some() && !options.app.is_empty() {
        let reason =
            "key \"takeover\" is for a sidecar that does not run its app: one that takes over would run it again";
        return Err(Problems::of_file(options.file.config.display().to_string(), reason).into());
    }
    Succession::begin(takeover).await.map_err(|error| takeover_failure(&options.file.config, error))
}

/// Runs the agent alone, or publishes the secrets once.
pub(crate) async fn agent(options: &AgentOptions) -> Result<(), Failure> {
    let Some(file) = read_or_check(&options.file)? else { return Ok(()) };
    if matches!(file.agent.identity, Source::Files(_)) && file.agent.secrets.is_none() {
        let path = options.file.config.display().to_string();
        let reason = "an agent has nothing to do here: the identity lies in files, and there are no secrets; run countersign proxy";
        return Err(Failure::Configuration(Problems::of_file(path, reason)));
    }
    let failure = |error| agent_failure(&options.file.config, error);
    if options.once {
        return countersign_agent::once(file.agent.secrets, ONCE).await.map_err(failure);
    }
    let (lifecycle, metrics) = signals::begin()?;
    let listen = file.proxy.admin;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| Failure::failed(format!("cannot listen on {listen}"), error))?;
    let ready = Agent::start(file.agent, &lifecycle).map_err(failure)?.ready();
    let announced = ready.clone();
    lifecycle.spawn(announce(move || announced.now(), lifecycle.clone()));
    lifecycle.spawn(Admin::new(metrics, move || ready.now()).serve(listener, lifecycle.clone()));
    lifecycle.draining().await;
    end(&lifecycle).await;
    Ok(())
}

/// Tells who started the process that it is ready, once it is.
async fn announce(ready: impl Fn() -> Readiness, lifecycle: Lifecycle) {
    let announced = async {
        until_ready(ready).await;
        supervisor::say_ready().await;
    };
    tokio::select! {
        () = announced => {}
        () = lifecycle.draining() => {}
    }
}

async fn serve(file: File, changes: Changes, options: &Serve, mut surroundings: Surroundings) -> Result<(), Failure> {
    let File { agent, proxy: config } = file;
    let path = options.file.config.clone();
    let lifecycle = surroundings.lifecycle.clone();
    let job = Job::start(&options.app, &lifecycle)?;
    surroundings.app = job.as_ref().map(Job::app);
    let (sender, receiver) = watch::channel(Arc::new(config));
    lifecycle.spawn(reload(path.clone(), changes, agent, sender, lifecycle.clone()));
    let served = countersign_proxy::run(receiver, surroundings).await;
    end(&lifecycle).await;
    let ended = match job {
        Some(job) => job.ended().await,
        None => Ok(()),
    };
    match served {
        Ok(()) => ended,
        Err(ProxyError::Takeover(error)) => Err(takeover_failure(&path, error)),
        Err(error) => Err(Failure::failed("the proxy", error)),
    }
}

/// Takes up the proxy's part of the file whenever it changes; a broken file changes nothing. A changed part of the agent
/// is said to wait for a restart.
async fn reload(
    path: PathBuf,
    mut changes: Changes,
    agent: AgentConfig,
    config: watch::Sender<Arc<ProxyConfig>>,
    lifecycle: Lifecycle,
) {
    let mut reader = Patient::new();
    let mut hangs = false;
    loop {
        let changed = async {
            tokio::select! {
                () = changes.next() => {}
                () = sleep(AGAIN), if hangs => {}
            }
            let from = path.clone();
            // A file system that hangs holds up nothing but this, and not the end of it either.
            reader.run(move || read(&from)).await
        };
        let read = tokio::select! {
            read = changed => read,
            () = lifecycle.draining() => return,
        };
        let hung = std::mem::replace(&mut hangs, read.is_err());
        match read.unwrap_or_else(|why| Err(Problems::of_file(path.display().to_string(), why))) {
            Ok(file) => {
                if agent.differs(&file.agent) {
                    tracing::warn!("the changes of `identity` or `secrets` are taken up at the next start");
                }
                config.send_if_modified(|current| {
                    let changed = **current != file.proxy;
                    *current = Arc::new(file.proxy);
                    changed
                });
            }
            // Said once, however long it lasts.
            Err(_) if hung && hangs => {}
            Err(problems) => {
                metrics::counter!("countersign_config_reload_failures_total").increment(1);
                tracing::error!(%problems, "the changed file is broken; the one before stays in force");
            }
        }
    }
}

/// How soon the file is read again where its file system did not answer.
const AGAIN: Duration = Duration::from_millis(500);

async fn end(lifecycle: &Lifecycle) {
    lifecycle.stop();
    lifecycle.finished().await;
}

/// The file, or `None` if it was only to be checked and is right.
fn read_or_check(options: &ConfigFile) -> Result<Option<File>, Failure> {
    let file = read(&options.config)?;
    if let PolicyFrom::File(policy) = &file.proxy.policy {
        check_policy(policy)?;
    }
    if !options.check {
        return Ok(Some(file));
    }
    say(&format!("{}: no problem", options.config.display()));
    Ok(None)
}

fn read(path: &Path) -> Result<File, Problems> {
    Document::read(path)?.decode(|root| {
        let table = root.table()?;
        let trust_domain = table.required("trust_domain").and_then(|value| value.parse::<TrustDomain>());
        // The parts are read even without it, so that their problems are named in the same run.
        let assumed = trust_domain.clone().or_else(|| TrustDomain::new("unknown").ok())?;
        let agent = AgentConfig::read(&table, &assumed);
        let proxy = ProxyConfig::read(&table, &assumed);
        // The feed of the authority's policy is beside the Workload API. Said even if something else is wrong.
        let in_files = agent.as_ref().is_some_and(|agent| matches!(agent.identity, Source::Files(_)));
        let from_authority = match &proxy {
            Some(proxy) => proxy.policy == PolicyFrom::Authority,
            None => table.optional("policy").is_none(),
        };
        if in_files && from_authority {
            return table
                .problem("key \"policy\" must name a file where the identity lies in files: there is no agent to ask");
        }
        trust_domain?;
        Some(File { agent: agent?, proxy: proxy? })
    })
}

/// A policy file that is broken at the start is said at once; later, the one before would stay in force.
fn check_policy(path: &Path) -> Result<(), Problems> {
    Policy::from_document(&Document::read(path)?).map(drop)
}

fn agent_failure(config: &Path, error: AgentError) -> Failure {
    if error.is_transient() {
        return Failure::Later(error.to_string());
    }
    match error {
        // A directory that is not tmpfs, or a key file that others may read: the configuration has to change.
        AgentError::Secrets(_) | AgentError::Enrolment(_) => {
            Failure::Configuration(Problems::of_file(config.display().to_string(), error.to_string()))
        }
        error => Failure::failed("the agent", error),
    }
}

fn takeover_failure(config: &Path, error: TakeoverError) -> Failure {
    if error.is_transient() {
        return Failure::Later(error.to_string());
    }
    match error {
        TakeoverError::NotPrivate { .. } => {
            Failure::Configuration(Problems::of_file(config.display().to_string(), error.to_string()))
        }
        error => Failure::failed("the take-over", error),
    }
}

#[expect(clippy::print_stdout, reason = "this is the command's answer")]
fn say(line: &str) {
    println!("{line}");
}
