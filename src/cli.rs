//! The command line: names, options and help.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Mutual TLS, policy and secrets for the services of a small team, in one binary.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 it failed, 2 usage, 78 bad configuration, 75 try again later.\n\
    The log goes to standard error; COUNTERSIGN_LOG filters it (info, debug, countersign_proxy=debug).";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// An authority, three services and their sidecars in one terminal; nothing to install
    Demo(Demo),
    /// One of the services of the demo
    #[command(hide = true)]
    DemoService(DemoService),
    /// Agent and proxy in one process: what runs beside a service
    Sidecar(Serve),
    /// The data path only: identity from any SPIFFE Workload API, or from files
    Proxy(Serve),
    /// Identity and secrets only
    Agent(Agent),
    /// Wait until a process is ready: what an app, or a health check, asks before it goes on
    Wait(Wait),
    /// The authority: registers workloads, issues their certificates, hands out policy
    #[command(subcommand)]
    Ca(Ca),
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Run the story, report, and exit: 0 only if all of it held
    #[arg(long)]
    pub(crate) once: bool,
    /// Report as one JSON object on standard output
    #[arg(long, requires = "once")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoService {
    /// Which of them
    pub(crate) name: crate::demo::service::Name,
    /// Where it listens
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// The local upstreams that it calls: NAME=ADDRESS
    #[arg(long, value_parser = crate::demo::service::upstream)]
    pub(crate) upstream: Vec<(String, SocketAddr)>,
    /// The file that its secret is in
    #[arg(long)]
    pub(crate) secret: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// The sidecar's file; see docs/reference/sidecar.md
    #[arg(short, long, value_name = "FILE", default_value = "/etc/countersign/sidecar.yaml")]
    pub(crate) config: PathBuf,
    /// Read the file, report every problem, and exit
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) file: ConfigFile,
    /// Run this app once it can be served, and end with its status when it has ended
    #[arg(last = true, value_name = "CMD")]
    pub(crate) app: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The admin endpoint of the process; by default 127.0.0.1:15000
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    pub(crate) admin: Option<SocketAddr>,
    /// The file of the sidecar, or of the authority, that names it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How long to wait; with 0s it is looked once
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Agent {
    #[command(flatten)]
    pub(crate) file: ConfigFile,
    /// Fetch the secrets, publish them, and exit: for an init container
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Make a new authority: its keys, its store, and files to start from
    Init(CaInit),
    /// Run the authority
    Run(CaRun),
    /// Tokens with which a workload enrols
    #[command(subcommand)]
    Token(CaToken),
    /// Who may be what: the registrations of workloads.yaml
    #[command(subcommand)]
    Workload(CaWorkload),
    /// The trust bundle, with which others verify this authority's certificates
    #[command(subcommand)]
    Bundle(CaBundle),
    /// The agents that the authority knows by their enrolment keys
    #[command(subcommand)]
    Agent(CaAgent),
    /// What was issued and refused, and whether the record is whole
    Audit(CaAudit),
    /// Keys, generation, agents
    Status(CaStatus),
}

#[derive(Debug, Args)]
pub(crate) struct CaFile {
    /// The authority's file; see docs/reference/ca.md
    #[arg(short, long, value_name = "FILE", default_value = "/etc/countersign/ca.yaml")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CaRun {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// Read the files, report every problem, and exit
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CaInit {
    /// The trust domain: a DNS-like name that you own, such as prod.example.org
    #[arg(long)]
    pub(crate) trust_domain: String,
    /// Where the authority lives; made if it is not there, and nothing in it is overwritten
    #[arg(long, value_name = "DIR", default_value = "/etc/countersign")]
    pub(crate) directory: PathBuf,
    /// Where it will listen
    #[arg(long, default_value = "0.0.0.0:8443")]
    pub(crate) listen: SocketAddr,
    /// Names by which agents reach it; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) dns: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaToken {
    /// Make a join token and print it, once
    Create(CaTokenCreate),
}

#[derive(Debug, Args)]
pub(crate) struct CaTokenCreate {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// The service: NAMESPACE/NAME
    #[arg(long, value_name = "NS/NAME")]
    pub(crate) service: String,
    /// How long it may be used for the first time
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// How many different workload instances may enrol with it
    #[arg(long, default_value_t = 1)]
    pub(crate) uses: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaWorkload {
    /// List the registrations
    List(CaWorkloadList),
    /// Show one registration
    Show(CaWorkloadShow),
    /// Check a workloads file, and put it in place of the present one
    Apply(CaWorkloadApply),
}

#[derive(Debug, Args)]
pub(crate) struct CaWorkloadList {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CaWorkloadShow {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// Its SPIFFE ID, or the path of it
    pub(crate) id: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CaWorkloadApply {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// The new workloads file
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub(crate) workloads: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaBundle {
    /// Print the trust bundle
    Show(CaBundleShow),
}

#[derive(Debug, Args)]
pub(crate) struct CaBundleShow {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// pem, or the JSON of the SPIFFE standard
    #[arg(long, value_enum, default_value_t = BundleFormat::Pem)]
    pub(crate) format: BundleFormat,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum BundleFormat {
    Pem,
    Spiffe,
}

#[derive(Debug, Args)]
pub(crate) struct CaStatus {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaAgent {
    /// Take an enrolment key's right to certificates away, for good; `ca status` lists the keys
    Evict(CaAgentEvict),
}

#[derive(Debug, Args)]
pub(crate) struct CaAgentEvict {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// The beginning of the key's thumbprint: at least eight hexadecimal digits
    pub(crate) thumbprint: String,
}

#[derive(Debug, Args)]
pub(crate) struct CaAudit {
    #[command(flatten)]
    pub(crate) file: CaFile,
    /// Check the whole record instead, and print its length and its head
    #[arg(long, conflicts_with_all = ["after", "limit"])]
    pub(crate) verify: bool,
    /// Only rows after this one
    #[arg(long, value_name = "ROW", default_value_t = 0)]
    pub(crate) after: i64,
    /// At most so many rows
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) limit: u32,
    /// Print JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}
