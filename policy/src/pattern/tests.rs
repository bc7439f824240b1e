use super::*;

fn pattern(text: &str) -> Result<Pattern, PatternError> {
    Pattern::parse(text)
}

fn matches(text: &str, path: &str) -> bool {
    pattern(text).unwrap().matches(Segments::of(path).unwrap())
}

#[test]
fn a_pattern_falls_into_head_middle_and_tail() {
    let literal = |text: &str| Segment::Literal(text.into());
    assert_eq!(pattern("a/*").unwrap(), Pattern { head: vec![literal("a"), Segment::Any], gap: None });
    let gap = Gap { middle: Vec::new(), tail: vec![literal("b")] };
    assert_eq!(pattern("**/b").unwrap(), Pattern { head: Vec::new(), gap: Some(gap) });
    let gap = Gap { middle: vec![literal("b")], tail: Vec::new() };
    assert_eq!(pattern("a/**/b/**").unwrap(), Pattern { head: vec![literal("a")], gap: Some(gap) });
}

#[test]
fn misused_wildcards_are_refused() {
    assert_eq!(pattern("a**"), Err(PatternError::PartialGap));
    assert_eq!(pattern("***"), Err(PatternError::PartialGap));
    assert_eq!(pattern("a/**/**"), Err(PatternError::RepeatedGap));
    assert_eq!(pattern("**/a/**/b/**"), Err(PatternError::TooManyGaps));
    assert_eq!(pattern("*a*"), Err(PatternError::TooManyStars("*a*".to_owned())));
    assert_eq!(pattern(&vec!["a"; MAX_SEGMENTS + 1].join("/")), Err(PatternError::TooDeep));
    assert!(pattern(&vec!["a"; MAX_SEGMENTS].join("/")).is_ok());
}

#[test]
fn the_parts_of_a_pattern_do_not_share_a_segment() {
    assert!(!matches("a/**/a", "/a"));
    assert!(matches("a/**/a", "/a/a"));
    assert!(!matches("a/**/b/**/b", "/a/b"));
    assert!(matches("a/**/b/**/b", "/a/b/b"));
    assert!(!matches("a/b/**/b/a", "/a/b/a"));
    assert!(!matches("ab*ba", "/aba"));
}

#[test]
fn an_empty_path_has_no_segment_and_a_slash_has_one() {
    assert!(matches("**", ""));
    assert!(!matches("", ""));
    assert!(matches("", "/"));
    assert!(!matches("*", "/"));
    assert!(Segments::of("a/b").is_none());
}

#[test]
fn a_hostile_path_costs_its_length_times_the_pattern() {
    let path = "/a".repeat(4_000);
    let segments = Segments::of(&path).unwrap();
    for text in ["**/a*b/**/c", "**/a/a/a/b/**", "a/**/a/**/b", "**/a/b/**/a"] {
        STEPS.set(0);
        assert!(!pattern(text).unwrap().matches(segments), "{text}");
        assert!(STEPS.get() < 4_000 * 6, "{text}: {} steps", STEPS.get());
    }
}
