//! Which of several operations a request is, for what tells requests apart as rules do, and decides nothing about them.
//!
//! Patterns mean what they mean in a rule that allows: the very bytes of the path count. A path that leaves open where a
//! segment ends or which name it bears is none of them, for each of its readings might be another.

use super::routes::Routes;
use crate::reading;
use crate::request::Action;
use crate::rule::Operations;

/// Operations in their order, filed so that what a lookup costs does not grow with their number.
#[derive(Debug, Default)]
pub struct FirstMatch(Routes);

impl FirstMatch {
    /// Files `operations`.
    pub fn compile<'a>(operations: impl IntoIterator<Item = &'a Operations>) -> Self {
        let mut routes = Routes::default();
        (0..).zip(operations).for_each(|(index, operations)| routes.add(index, operations));
        Self(routes)
    }

    /// The place of the first that has a request, counted from 0. `path` is as on the wire, without the query, and must
    /// be one that the guard has let pass.
    pub fn find(&self, method: &str, path: &str) -> Option<usize> {
        if reading::leaves_open(path) {
            return None;
        }
        let mut first = None;
        self.0.collect(&Action::Http { method, path }, &mut first);
        first.and_then(|index: u32| usize::try_from(index).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::STEPS;

    fn operations(methods: &[&str], paths: &[&str]) -> Operations {
        let methods = (!methods.is_empty()).then(|| methods.iter().map(|method| (*method).into()).collect());
        Operations::Http { methods, paths: Some(paths.iter().map(|path| path.parse().unwrap()).collect()) }
    }

    #[test]
    fn the_first_that_has_method_and_path_counts() {
        let all =
            [operations(&["POST"], &["/v1/*", "/v2/**"]), operations(&[], &["/v1/**"]), operations(&[], &["/v2"])];
        let which = FirstMatch::compile(&all);
        for (method, path, expected) in [
            ("POST", "/v1/a", Some(0)),
            ("GET", "/v1/a", Some(1)),
            ("post", "/v1/a", Some(1)),
            ("POST", "/v1/a/b", Some(1)),
            ("POST", "/v2", Some(0)),
            ("GET", "/v2", Some(2)),
            ("GET", "/v2/", None),
            ("GET", "/V1/a", None),
            ("OPTIONS", "*", None),
            ("GET", "", None),
        ] {
            assert_eq!(which.find(method, path), expected, "{method} {path}");
        }
        assert_eq!(FirstMatch::compile([]).find("GET", "/"), None);
    }

    #[test]
    fn a_lookup_is_one_walk_however_many_there_are() {
        let all: Vec<_> = (0..1000).map(|number| operations(&[], &[&format!("/{number}/**"), "/*/x/**/y"])).collect();
        let which = FirstMatch::compile(&all);
        STEPS.with(|steps| steps.set(0));
        assert_eq!(which.find("GET", "/999/a/b"), Some(999));
        assert_eq!(which.find("GET", "/none/a/b"), None);
        assert!(STEPS.with(std::cell::Cell::get) < 20);
    }

    #[test]
    fn a_path_that_leaves_its_reading_open_is_none_of_them() {
        let which = FirstMatch::compile(&[operations(&[], &["/**"])]);
        for path in ["/a%2Fb", "/a%5Cb", "/%61", "/%252F", "/a//b"] {
            assert_eq!(which.find("GET", path), None, "{path}");
        }
        // Where every reader sees the same segments, the bytes count, as for a rule that allows.
        for path in ["/a", "/a%20b", "/100%25", "/models%3Adelete", "/a;x=1"] {
            assert_eq!(which.find("GET", path), Some(0), "{path}");
        }
        let named = FirstMatch::compile(&[operations(&[], &["/models:delete", "/a"])]);
        assert_eq!(["/models%3Adelete", "/a;x=1"].map(|path| named.find("GET", path)), [None, None]);
    }
}
