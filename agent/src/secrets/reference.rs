//! Where a value comes from: a path in a backend. It names, and holds, no value.

use std::fmt;
use std::path::PathBuf;

/// One thing that a backend can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reference {
    /// A secret of a KV version 2 mount, which is the first segment of the path.
    Vault { mount: String, path: String },
    /// A file.
    File(PathBuf),
    /// One that a template made up while it was rendered.
    Computed(Computed),
}

/// A reference whose text may be made of values, and is shown to nobody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Computed(Box<Reference>);

impl Computed {
    /// What to ask for.
    pub(crate) fn reference(&self) -> &Reference {
        &self.0
    }
}

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computed")
    }
}

impl Reference {
    /// `mount/path` in Vault.
    pub(crate) fn vault(text: &str) -> Result<Self, &'static str> {
        let wrong = "must be the mount and the path of a secret, like kv/team/app";
        let (mount, path) = text.split_once('/').ok_or(wrong)?;
        let segments = || text.split('/');
        if segments().any(|segment| segment.is_empty() || segment == "." || segment == "..") {
            return Err(wrong);
        }
        if text.len() > MAX_PATH || text.chars().any(char::is_control) {
            return Err("must be shorter and without control characters");
        }
        Ok(Self::Vault { mount: mount.to_owned(), path: path.to_owned() })
    }

    /// A path, absolute or relative to the directory of the backend.
    pub(crate) fn file(text: &str) -> Result<Self, &'static str> {
        let path = PathBuf::from(text);
        if text.is_empty() || path.components().any(|part| part == std::path::Component::ParentDir) {
            return Err("must be the path of a file, without '..'");
        }
        Ok(Self::File(path))
    }
}

impl Reference {
    /// Whether it is a file of the backend `file`.
    pub(crate) fn is_file(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Vault { .. } => false,
            Self::Computed(Computed(reference)) => reference.is_file(),
        }
    }

    /// The same, shown to nobody.
    pub(crate) fn computed(self) -> Self {
        Self::Computed(Computed(Box::new(self)))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault { mount, path } => write!(f, "vault {mount}/{path}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Computed(_) => f.write_str("a reference computed from a value"),
        }
    }
}

const MAX_PATH: usize = 1024;
