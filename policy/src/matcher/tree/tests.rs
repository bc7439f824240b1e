use super::*;
use crate::pattern::STEPS;

fn tree(patterns: &[&str]) -> PatternTree<String> {
    let mut tree = PatternTree::default();
    for text in patterns {
        let pattern = Pattern::parse(text.trim_start_matches('/')).unwrap();
        *tree.entry(&pattern) = Some((*text).to_owned());
    }
    tree
}

fn found(tree: &PatternTree<String>, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    tree.visit(Segments::of(path).unwrap(), &mut |value| found.push(value.clone()));
    found.sort();
    found.dedup();
    found
}

/// Walks `path`, which nothing matches, and returns how many segments were taken.
fn steps(tree: &PatternTree<String>, path: &str) -> usize {
    STEPS.set(0);
    assert!(found(tree, path).is_empty());
    STEPS.get()
}

#[test]
fn every_pattern_that_matches_is_found_and_no_other() {
    let tree = tree(&[
        "/a",
        "/a/",
        "/a/b",
        "/a/*",
        "/*/b",
        "/a/**",
        "/**",
        "/**/b",
        "/a/**/b",
        "/a*",
        "/*a",
        "/a*a",
        "/**/b/**",
        "/x/**/y/**/z",
    ]);
    assert_eq!(found(&tree, "/"), ["/**"]);
    assert_eq!(found(&tree, "/a"), ["/**", "/*a", "/a", "/a*", "/a/**"]);
    assert_eq!(found(&tree, "/a/"), ["/**", "/a/", "/a/**"]);
    assert_eq!(found(&tree, "/aa"), ["/**", "/*a", "/a*", "/a*a"]);
    assert_eq!(found(&tree, "/a/b"), ["/**", "/**/b", "/**/b/**", "/*/b", "/a/*", "/a/**", "/a/**/b", "/a/b"]);
    assert_eq!(found(&tree, "/a/c/b"), ["/**", "/**/b", "/**/b/**", "/a/**", "/a/**/b"]);
    assert_eq!(found(&tree, "/b/c"), ["/**", "/**/b/**"]);
    assert_eq!(found(&tree, "/x/1/y/2/3/z"), ["/**", "/x/**/y/**/z"]);
    assert_eq!(found(&tree, "/x/y/z"), ["/**", "/x/**/y/**/z"]);
    assert_eq!(found(&tree, "/x/z/y"), ["/**"]);
}

#[test]
fn a_wildcard_within_a_character_of_several_bytes_does_not_panic() {
    let tree = tree(&["/a*", "/*b", "/a*b"]);
    assert!(found(&tree, "/é").is_empty());
    assert_eq!(found(&tree, "/aé"), ["/a*"]);
    assert_eq!(found(&tree, "/aéb"), ["/*b", "/a*", "/a*b"]);
}

#[test]
fn a_hostile_path_costs_its_length_times_the_depth_of_the_patterns() {
    let path = "/a".repeat(4_000);
    let deep = format!("/**{}/b/**", "/a".repeat(30));
    let tree = tree(&["/a/**/a/b", "/**/a*b/**/c", "/**/a/**/b", "/a/a/**/a/**/a/b", "/*/**/*/**/b", &deep]);
    let steps = steps(&tree, &path);
    assert!(steps < 4_000 * (30 + 3 * 6), "{steps} steps");
}

#[test]
fn thousands_of_wildcards_that_nearly_match_are_not_tried_one_by_one() {
    let shapes = ["/p{}-*/x", "/*-s{}/x", "/a*-s{}/x", "/**/m{}*/x", "/**/m{}/**/y", "/a/**/t{}"];
    let patterns: Vec<String> =
        (0..12_000).map(|rule| shapes[rule % shapes.len()].replace("{}", &rule.to_string())).collect();
    let tree = tree(&patterns.iter().map(String::as_str).collect::<Vec<_>>());
    for path in ["/p6-/y", "/a-s7/y", "/a-s8/y", "/a/m9z/y", "/a/m10/z", "/a/t12"] {
        assert!(steps(&tree, path) < 40, "{path}: {} steps", STEPS.get());
    }
    assert_eq!(found(&tree, "/a/m10/z/y"), ["/**/m10/**/y"]);
    assert_eq!(found(&tree, "/a-s8/x"), ["/a*-s8/x"]);
}

#[test]
fn each_node_is_visited_once_even_where_literals_and_wildcards_cross() {
    // All 4,096 patterns of twelve segments that are each "a" or "*": no more visits than nodes, whatever the path.
    let patterns: Vec<String> = (0..4_096)
        .map(|bits: u32| (0..12).map(|at| if bits >> at & 1 == 1 { "/a" } else { "/*" }).collect::<String>() + "/end")
        .collect();
    let tree = tree(&patterns.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(steps(&tree, &"/a".repeat(14)) <= 8_192 + 4_096);
    assert!(steps(&tree, &"/a".repeat(4_000)) <= 8_192 + 4_096);
}
