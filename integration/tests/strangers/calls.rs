//! curl, which plays the app, and in one test the peer; and h2load, for many requests over one HTTP/2 connection.

use std::path::Path;
use std::process::Command;

/// A finished call of curl, of one request or several.
#[derive(Debug)]
pub(crate) struct Called {
    /// What each answer began with, headers included, in order.
    pub(crate) heads: Vec<String>,
    pub(crate) body: Vec<u8>,
    /// How many connections curl opened.
    pub(crate) connections: u32,
}

impl Called {
    pub(crate) fn status(&self) -> u16 {
        self.heads.last().unwrap().split(' ').nth(1).unwrap().trim().parse().unwrap()
    }

    /// The only value of a header of the last answer.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let lines = self.heads.last().unwrap().lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned());
        let value = found.next();
        assert_eq!(found.next(), None, "{name} came twice: {self:?}");
        value
    }
}

/// Runs curl, which has to get an answer to each request.
pub(crate) fn curl(directory: &Path, arguments: &[&str]) -> Called {
    try_curl(directory, arguments).unwrap_or_else(|why| panic!("curl {arguments:?}: {why}"))
}

/// As [`curl`], with what it says if it gets none.
pub(crate) fn try_curl(directory: &Path, arguments: &[&str]) -> Result<Called, String> {
    let (heads, body) = (directory.join("curl.heads"), directory.join("curl.body"));
    let _ = std::fs::remove_file(&body);
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "--max-time",
        "60",
        "--path-as-is",
        "-H",
        "Expect:",
        "-w",
        "%{stderr}opened %{num_connects}\n",
    ]);
    command.arg("-D").arg(&heads).arg("-o").arg(&body).args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(said);
    }
    let opened = said.lines().filter_map(|line| line.strip_prefix("opened ")?.parse::<u32>().ok());
    let heads = std::fs::read_to_string(heads).unwrap();
    let heads: Vec<_> = heads.split("\r\n\r\n").filter(|head| !head.is_empty()).map(str::to_owned).collect();
    Ok(Called { heads, body: std::fs::read(body).unwrap_or_default(), connections: opened.sum() })
}

/// Runs h2load; what it says at the end.
pub(crate) fn h2load(arguments: &[&str]) -> String {
    let output = Command::new("h2load").args(arguments).output().expect("h2load: run integration/peers/setup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
