//! The demo's small world: a directory with the files that a user would write, and the processes that run on them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use countersign_runtime::Reserved;
use tempfile::TempDir;

use super::child::{self, Child};
use super::observe;
use super::service::Name;
use crate::exit::Failure;

/// The trust domain of the demo.
pub(crate) const TRUST_DOMAIN: &str = "demo.countersign.example";

/// How long the certificates of the demo last: short, so that rotations can be watched.
const SVID_TTL: &str = "10s";

/// How long the processes may take to be ready.
const START: Duration = Duration::from_secs(15);

/// The secret's name, in the backend and on tmpfs.
pub(crate) const SECRET: &str = "provider-key";

/// Where one service and its sidecar listen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) name: Name,
    /// The service itself.
    pub(crate) app: SocketAddr,
    /// Its sidecar, for the mesh.
    pub(crate) inbound: SocketAddr,
    /// Its sidecar's admin endpoint.
    pub(crate) admin: SocketAddr,
    /// Its sidecar, for the service: the way to `nlp` and to `evals`.
    pub(crate) to_nlp: SocketAddr,
    pub(crate) to_evals: SocketAddr,
}

/// The running demo.
pub(crate) struct World {
    children: Vec<Child>,
    /// Removed with this, after the children, which end first.
    directory: TempDir,
    places: [Place; 3],
    /// The addresses of all of them, which a child may have to bind again.
    _reserved: Vec<Reserved>,
    /// When the authority was started.
    pub(crate) began: Instant,
    /// Until every sidecar was ready.
    pub(crate) ready_after: Duration,
}

impl World {
    /// Makes the directory, writes the files, starts the processes and waits until all are ready.
    pub(crate) async fn start(narrate: bool) -> Result<Self, Failure> {
        let began = Instant::now();
        let directory = make_directory()?;
        let mut reserved = Vec::new();
        let addresses = addresses(&mut reserved)?;
        let places = addresses.places;
        let children = Vec::new();
        let mut world = Self { children, directory, places, _reserved: reserved, began, ready_after: Duration::ZERO };
        match world.bring_up(&addresses, narrate).await {
            Ok(()) => {
                world.ready_after = began.elapsed();
                Ok(world)
            }
            Err(failure) => {
                let failure = world.with_logs(failure);
                world.stop().await;
                Err(failure)
            }
        }
    }

    async fn bring_up(&mut self, addresses: &Addresses, narrate: bool) -> Result<(), Failure> {
        let say = super::report::narrator(narrate);
        say(&format!("everything lives in {}", self.directory.path().display()));
        self.write_services()?;
        let listen = addresses.authority;
        self.start_authority(listen, addresses.authority_admin).await?;
        say(&format!("the authority of {TRUST_DOMAIN} listens on {listen}"));
        for place in self.places {
            self.write_sidecar(&place, listen).await?;
            let name = place.name.as_str();
            let config = self.path(&format!("{name}/sidecar.yaml")).display().to_string();
            self.spawn(&format!("{name}-sidecar"), &["sidecar".into(), "-c".into(), config])?;
            self.start_service(&place)?;
        }
        for place in self.places {
            self.wait_ready(&place).await?;
            say(&format!("{} is served on {} and has its identity", place.name.as_str(), place.inbound));
        }
        Ok(())
    }

    async fn start_authority(&mut self, listen: SocketAddr, admin: SocketAddr) -> Result<(), Failure> {
        let ca = self.path("ca").display().to_string();
        let init = ["ca", "init", "--trust-domain", TRUST_DOMAIN, "--directory", &ca, "--dns", "localhost", "--listen"];
        let mut init: Vec<String> = init.into_iter().map(Into::into).collect();
        init.push(listen.to_string());
        child::output(&init).await?;
        self.write("ca/workloads.yaml", &workloads())?;
        self.write("ca/policy.yaml", POLICY)?;
        // The demo needs no admin endpoint of the authority, and must not take a fixed port.
        let file = self.path("ca/ca.yaml");
        let text = std::fs::read_to_string(&file).map_err(|error| Failure::failed("cannot read ca.yaml", error))?;
        let admin = format!("admin: {{ listen: {admin} }}");
        let text: Vec<&str> =
            text.lines().map(|line| if line.starts_with("admin:") { admin.as_str() } else { line }).collect();
        self.write("ca/ca.yaml", &(text.join("\n") + "\n"))?;
        self.spawn("authority", &["ca".into(), "run".into(), "-c".into(), file.display().to_string()])?;
        Ok(())
    }

    fn start_service(&mut self, place: &Place) -> Result<(), Failure> {
        let mut arguments: Vec<String> = vec!["demo-service".into(), place.name.as_str().into()];
        arguments.extend(["--listen".into(), place.app.to_string()]);
        for (name, address) in [("nlp", place.to_nlp), ("evals", place.to_evals)] {
            arguments.extend(["--upstream".into(), format!("{name}={address}")]);
        }
        if place.name == Name::Nlp {
            arguments.extend(["--secret".into(), self.path(&format!("nlp/secrets/{SECRET}")).display().to_string()]);
        }
        self.spawn(place.name.as_str(), &arguments)
    }

    fn write_services(&self) -> Result<(), Failure> {
        self.write(&format!("backend/{SECRET}"), "sk-demo-first-value")?;
        let nlp = self.place(Name::Nlp);
        let secrets = format!(
            "backends:\n  file: {{ directory: {backend} }}\n\
             directory: {directory}\n\
             files:\n  - name: {SECRET}\n    from: {{ file: {SECRET} }}\n    \
             on_change: {{ http: {{ url: \"http://{app}/-/reload\" }} }}\n",
            backend = self.path("backend").display(),
            directory = self.path("nlp/secrets").display(),
            app = nlp.app,
        );
        self.write("nlp/secrets.yaml", &secrets)
    }

    async fn write_sidecar(&self, place: &Place, authority: SocketAddr) -> Result<(), Failure> {
        let name = place.name.as_str();
        let config = self.path("ca/ca.yaml").display().to_string();
        let service = format!("demo/{name}");
        let create = ["ca", "token", "create", "-c", &config, "--service", &service];
        let token = child::output(&create.map(Into::into)).await?;
        self.write(&format!("{name}/token"), token.trim())?;
        let directory = self.path(name);
        let mut file = format!(
            "trust_domain: {TRUST_DOMAIN}\n\
             identity:\n  authority: {authority}\n  bundle: {bundle}\n  \
             attest: {{ join_token_file: {directory}/token }}\n  socket: {directory}/agent.sock\n\
             inbound:\n  - {{ name: {name}, listen: {inbound}, app: {app}, protocol: http }}\n\
             outbound:\n",
            bundle = self.path("ca/bundle.pem").display(),
            directory = directory.display(),
            inbound = place.inbound,
            app = place.app,
        );
        for (target, listen) in [(Name::Nlp, place.to_nlp), (Name::Evals, place.to_evals)] {
            let (to, upstream) = (self.place(target).inbound, target.as_str());
            let _ = writeln!(
                file,
                "  - {{ name: to-{upstream}, listen: {listen}, to: \"{to}\", identity: /ns/demo/sa/{upstream}, protocol: http }}"
            );
        }
        if place.name == Name::Nlp {
            file.push_str("secrets: secrets.yaml\n");
        }
        let _ = write!(file, "policy: from-authority\nadmin: {{ listen: {} }}\naccess_log: true\n", place.admin);
        self.write(&format!("{name}/sidecar.yaml"), &file)
    }

    async fn wait_ready(&mut self, place: &Place) -> Result<(), Failure> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(child) =
                self.children.iter_mut().find_map(|child| child.ended().map(|status| (child.name.clone(), status)))
            {
                return Err(Failure::Failed(format!("{} ended with {}", child.0, child.1)));
            }
            let why = match observe::ready(place.admin).await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            if Instant::now() > deadline {
                return Err(Failure::Failed(format!("the sidecar of {} is not ready: {why}", place.name.as_str())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for `end`; a child that ends before is a failure.
    pub(crate) async fn watch_until(&mut self, end: impl Future<Output = ()>) -> Result<(), Failure> {
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            if let Some((name, status)) =
                self.children.iter_mut().find_map(|child| Some((child.name.clone(), child.ended()?)))
            {
                return Err(Failure::Failed(format!("{name} ended with {status}")));
            }
        }
    }

    /// Where a service listens.
    pub(crate) fn place(&self, name: Name) -> Place {
        self.places[name as usize]
    }

    /// The three services.
    pub(crate) fn places(&self) -> [Place; 3] {
        self.places
    }

    /// The log of a child.
    pub(crate) fn log(&self, child: &str) -> String {
        let log = self.children.iter().find(|running| running.name == child);
        log.and_then(|child| std::fs::read_to_string(&child.log).ok()).unwrap_or_default()
    }

    /// A path in the demo's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of the demo, as a user would.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.path(name);
        let failed = |error| Failure::failed(format!("cannot write {}", path.display()), error);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(&path, text).map_err(failed)
    }

    /// A failure with the last lines of every log, for they are about to be removed.
    pub(crate) fn with_logs(&self, failure: Failure) -> Failure {
        let Failure::Failed(mut message) = failure else { return failure };
        for child in &self.children {
            let log = std::fs::read_to_string(&child.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("\"access\"")).collect();
            let _ = write!(message, "\n--- {}", child.name);
            for line in lines.iter().rev().take(8).rev() {
                let _ = write!(message, "\n{line}");
            }
        }
        Failure::Failed(message)
    }

    /// Ends every child, the last started first, and removes the directory.
    pub(crate) async fn stop(&mut self) {
        while let Some(child) = self.children.pop() {
            child.stop().await;
        }
        if let Err(error) = std::fs::remove_dir_all(self.directory.path()) {
            tracing::warn!(directory = %self.directory.path().display(), %error, "cannot be removed");
        }
    }

    fn spawn(&mut self, name: &str, arguments: &[String]) -> Result<(), Failure> {
        self.children.push(Child::start(name, self.directory.path(), arguments)?);
        Ok(())
    }
}

/// A fresh directory, for this user only, on tmpfs: the secrets of the demo need one.
fn make_directory() -> Result<TempDir, Failure> {
    let candidates = [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(PathBuf::from("/dev/shm"))];
    let base = candidates.into_iter().flatten().find(|path| is_tmpfs(path));
    let base = base.ok_or_else(|| Failure::Failed("the demo needs a tmpfs at $XDG_RUNTIME_DIR or /dev/shm".into()))?;
    let made = tempfile::Builder::new().prefix("countersign-demo-").tempdir_in(&base);
    made.map_err(|error| Failure::failed(format!("cannot make a directory in {}", base.display()), error))
}

fn is_tmpfs(path: &Path) -> bool {
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|status| status.f_type == TMPFS)
        && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Addresses for everything that the demo starts.
struct Addresses {
    authority: SocketAddr,
    authority_admin: SocketAddr,
    places: [Place; 3],
}

/// Addresses on loopback that nobody else is given while `reserved` lives.
fn addresses(reserved: &mut Vec<Reserved>) -> Result<Addresses, Failure> {
    let mut next = || {
        let made = Reserved::any().map_err(|error| Failure::failed("no free address on loopback", error))?;
        let address = SocketAddr::V4(made.address());
        reserved.push(made);
        Ok::<_, Failure>(address)
    };
    let mut place = |name| -> Result<Place, Failure> {
        Ok(Place { name, app: next()?, inbound: next()?, admin: next()?, to_nlp: next()?, to_evals: next()? })
    };
    let places = [place(Name::App)?, place(Name::Nlp)?, place(Name::Evals)?];
    Ok(Addresses { authority: next()?, authority_admin: next()?, places })
}

fn workloads() -> String {
    let entry =
        |name: &str| format!("  - {{ id: /ns/demo/sa/{name}, attest: {{ join_token: {{}} }}, ttl: {SVID_TTL} }}\n");
    format!("workloads:\n{}{}{}", entry("app"), entry("nlp"), entry("evals"))
}

/// The policy of the demo: `app` may ask `nlp`, `nlp` may ask `evals`, and nobody else anybody.
const POLICY: &str = "\
version: 1
trust_domain: demo.countersign.example
names:
  app: /ns/demo/sa/app
  nlp: /ns/demo/sa/nlp
  evals: /ns/demo/sa/evals
rules:
  - name: app asks nlp
    from: app
    to: nlp
    allow: { methods: [POST], paths: [/execute] }
  - name: nlp has its answers scored
    from: nlp
    to: evals
    allow: { methods: [POST], paths: [/evaluate] }
mode: enforce
";
