//! What is wrong with a file, said so that its author can mend it: file, line, key, and the nearest right word.

use std::fmt;

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as the user named it.
    pub file: String,
    /// Line in the file, from 1; 0 where the whole file is meant.
    pub line: usize,
    /// Dotted path of the key (`inbound[0].listen`); empty at the top level.
    pub key: String,
    /// What is wrong, and where possible the mend. Never a secret value.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with one or several files, in the order of the lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// All of `list`, sorted by file and line.
    pub fn new(mut list: Vec<Problem>) -> Self {
        list.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        Self(list)
    }

    /// A single problem that concerns a whole file, such as one that cannot be read.
    pub fn of_file(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self(vec![Problem { file: file.into(), line: 0, key: String::new(), message: message.into() }])
    }

    /// The problems, sorted by file and line; never empty where it is an `Err`.
    pub fn list(&self) -> &[Problem] {
        &self.0
    }

    /// These problems and those of another file.
    pub fn and(mut self, others: Problems) -> Self {
        self.0.extend(others.0);
        Self::new(self.0)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The candidate most like `word`, if any is near enough to be what the author meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= allowed || (word.len() > 2 && candidate.starts_with(word)))
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_a_misspelt_word_and_no_stranger() {
        let known = ["listen", "name", "identity", "protocol"];
        assert_eq!(nearest("listn", known), Some("listen"));
        assert_eq!(nearest("protcol", known), Some("protocol"));
        assert_eq!(nearest("banana", known), None);
    }

    #[test]
    fn problems_are_listed_by_file_and_line() {
        let problem = |line| Problem { file: "a.yaml".into(), line, key: "k".into(), message: "bad".into() };
        let text = Problems::new(vec![problem(9), problem(2)]).to_string();
        assert_eq!(text, "a.yaml:2: k: bad\na.yaml:9: k: bad");
    }
}
