//! Where another process may take over from this one: the key `takeover`.

use std::path::PathBuf;
use std::time::Duration;

use countersign_config::Value;

/// How one process follows another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takeover {
    /// The unix socket by which they meet.
    pub socket: PathBuf,
    /// How long the new one may take until it could serve; then it gives up, and the old one goes on.
    pub within: Duration,
}

impl Takeover {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?;
        let socket = table.required("socket").and_then(|value| {
            let path = value.path()?;
            if path.as_os_str().len() > LONGEST {
                return value.problem(format!("the path of a unix socket has at most {LONGEST} bytes"));
            }
            Some(path)
        });
        let range = Duration::from_secs(1)..=Duration::from_secs(600);
        let within = table.optional("within").map_or(Some(WITHIN), |value| value.duration(range));
        Some(Self { socket: socket?, within: within? })
    }
}

/// How long the new process may take unless the file says otherwise.
const WITHIN: Duration = Duration::from_secs(60);

/// What fits where the kernel keeps it, after the name under which the socket is made before it is moved into place.
const LONGEST: usize = 90;
