//! The raw requests of `requests.txt`, for every test that reads them.

use countersign_testing::unescape;

/// One of them.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What the service behind the guard sees, in order.
    pub(crate) expected: Vec<&'static str>,
    pub(crate) raw: Vec<u8>,
}

/// The requests for a listener whose paths are strict.
pub(crate) fn rows() -> Vec<Row> {
    rows_of(include_str!("requests.txt"))
}

/// `name | what the service sees, in order | raw bytes`, the bytes as [`unescape`] takes them.
pub(crate) fn rows_of(file: &'static str) -> Vec<Row> {
    countersign_testing::rows(file)
        .map(|line| {
            let mut columns = line.splitn(3, " | ");
            let (name, expected, raw) = (columns.next().unwrap(), columns.next().unwrap(), columns.next().expect(line));
            let expected = expected.split(", ").filter(|expected| *expected != "nothing").collect();
            Row { name, expected, raw: unescape(raw) }
        })
        .collect()
}
