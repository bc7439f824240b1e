//! What templates give, and what their errors keep to themselves.

use super::super::backend::Field;
use super::*;

fn values() -> Arc<Values> {
    let field = |text: &str, json| Field { text: Zeroizing::new(text.to_owned()), json };
    let fields = [
        ("password", field("p@ss \"1\"", false)),
        ("port", field("5432", true)),
        ("hosts", field(r#"["a","b"]"#, true)),
        ("blob", field("aGVsbG8=", false)),
    ];
    let fields = fields.into_iter().map(|(name, field)| (name.to_owned(), field)).collect();
    let fetched = Fetched { version: "3".into(), content: Content::Fields(fields) };
    Arc::new(BTreeMap::from([(Reference::vault("kv/db").unwrap(), Arc::new(fetched))]))
}

fn render(text: &str) -> Result<String, String> {
    let rendered = Template::new(text, None).unwrap().render(values());
    let text = rendered.result.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(text.to_vec()).unwrap())
}

#[test]
fn fields_and_filters_fill_the_text_as_it_is_written() {
    assert_eq!(render("{{ vault('kv/db').password | urlencode }}\n").unwrap(), "p%40ss%20%221%22\n");
    assert_eq!(render("{{ vault('kv/db')['port'] + 1 }}").unwrap(), "5433");
    assert_eq!(render("{% for h in vault('kv/db').hosts %}{{ h }};{% endfor %}").unwrap(), "a;b;");
    assert_eq!(render("{{ vault('kv/db').blob | b64decode }} {{ 'hello' | b64encode }}").unwrap(), "hello aGVsbG8=");
    assert_eq!(render("{{ vault('kv/db').absent | default('x') }}").unwrap(), "x");
}

#[test]
fn an_error_names_place_and_reference_and_never_a_value() {
    assert_eq!(
        render("a\nb {{ vault('kv/db').absent }}").unwrap_err(),
        "line 2 of the template: vault kv/db has no key \"absent\""
    );
    for text in [
        "{{ vault('kv/db').password | int }}",
        "{{ vault('kv/db').password | b64decode }}",
        "{{ -vault('kv/db').password }}",
    ] {
        let error = render(text).unwrap_err();
        assert!(!error.contains("p@ss"), "{error}");
    }
}

#[test]
fn no_value_shows_through_a_reference_or_a_key_that_was_computed_from_it() {
    let template = |text: &str| Template::new(text, Some("/run/provided".into())).unwrap();
    for text in [
        "{{ file('app-' ~ vault('kv/db').password) }}",
        "{{ vault('kv/' ~ vault('kv/db').password).x }}",
        "{{ vault(vault('kv/db').password).x }}",
        "{{ file('/' ~ vault('kv/db').password) }}",
        "{{ vault('kv/db')[vault('kv/db').password] }}",
    ] {
        let rendered = template(text).render(values());
        let asked: Vec<_> = rendered.asked.iter().map(|reference| format!("{reference} {reference:?}")).collect();
        let error = rendered.result.err().map(|error| error.to_string()).unwrap_or_default();
        let shown = format!("{asked:?} {error}");
        assert!(!shown.contains("p@ss"), "{text}: {shown}");
        assert!(shown.contains("computed from a value"), "{text}: {shown}");
    }
    let asked = template("{{ file('plain') }}").render(values()).asked;
    assert_eq!(asked.iter().map(ToString::to_string).collect::<Vec<_>>(), ["file /run/provided/plain"]);
}

#[test]
fn a_value_chooses_no_file_outside_the_backends_directory() {
    let absolute = "{{ file('/etc/' ~ vault('kv/db').port) }}";
    for directory in [None, Some("/run/provided".into())] {
        let rendered = Template::new(absolute, directory).unwrap().render(values());
        assert!(rendered.asked.iter().all(|reference| !reference.is_file()));
        assert!(rendered.result.unwrap_err().to_string().contains("must be below backends.file.directory"));
    }
    let inside = Template::new("{{ file('app-' ~ vault('kv/db').port) }}", Some("/run/provided".into())).unwrap();
    assert!(inside.render(values()).asked.iter().any(Reference::is_file));
}

#[test]
fn a_template_that_runs_away_or_grows_is_stopped() {
    let error = render("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}").unwrap_err();
    assert!(error.contains("fuel"), "{error}");
    let error = render("{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}").unwrap_err();
    assert!(error.contains("larger than") || error.contains("fuel"), "{error}");
}

#[test]
fn what_is_not_there_yet_is_asked_for_and_does_not_fail_the_rest() {
    let template =
        Template::new("{{ vault('kv/x').a | urlencode }}{{ file('/f') }}{{ vault('kv/y')['b'] }}", None).unwrap();
    let asked: Vec<String> = template.first_references().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(asked, ["vault kv/x", "vault kv/y", "file /f"]);
}
