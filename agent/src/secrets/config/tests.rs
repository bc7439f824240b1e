//! What `secrets.yaml` accepts and refuses.

use std::time::Duration;

use super::*;

fn load(text: &str) -> Result<SecretsConfig, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let name = file.path().display().to_string();
    SecretsConfig::load(file.path()).map_err(|problems| problems.to_string().replace(&name, "secrets.yaml"))
}

#[test]
fn the_whole_schema_is_read() {
    let config = load(
        r#"
backends:
  vault: { address: "https://vault:8200", auth: { token_file: /run/token }, namespace: team, timeout: 5s }
  file: { directory: /run/secrets }
directory: /run/secrets/cs
files:
  - name: openai-key
    from: { vault: kv/langwatch/nlp, key: OPENAI_API_KEY }
    mode: 0440
    on_change: { signal: { name: SIGHUP, pid_file: /run/app.pid } }
  - name: .env
    template: |
      A={{ vault('kv/a').x | urlencode }}{% if true %} {{ vault('kv/b')['y'] | b64encode }}{% endif %}
      B={{ file('db') | trim | tojson }}
    on_change: { http: { url: "http://127.0.0.1:3000/reload", timeout: 3s } }
    refresh: 1m
  - name: key
    from: { file: /run/secrets/key }
    decode: hex
    validate: "^[0-9a-f]{64}$"
    immutable: true
    on_change: none
"#,
    )
    .unwrap();
    assert_eq!(config.vault.unwrap().timeout, Duration::from_secs(5));
    let [key, env, hex] = config.files.as_slice() else { panic!("there are three") };
    assert_eq!((key.mode, env.mode, env.refresh), (0o440, 0o400, Duration::from_secs(60)));
    let references: Vec<String> = env.first_references().iter().map(ToString::to_string).collect();
    assert_eq!(references, ["vault kv/a", "vault kv/b", "file /run/secrets/db"]);
    assert!(hex.immutable && hex.on_change.is_none() && hex.decode == Some(Decode::Hex));
}

#[test]
fn every_problem_is_named_at_once_with_its_line() {
    let problems = load(
        r#"backends:
  aws: { region: eu-central-1 }
  vault: { address: "http://vault:8200", auth: { spiffe_jwt: { role: nlp } } }
directory: /run/secrets/cs
files:
  - { name: ../etc/passwd, from: { file: /x } }
  - { name: a, from: { file: x }, mode: 999 }
  - { name: b, from: { azure: x } }
  - { name: c, template: "{{ vualt('kv/x').y }}" }
  - { name: d, template: "{% if %}" }
  - { name: e, from: { file: /x }, on_change: { restart: app } }
  - { name: f, from: { file: /x }, on_change: { signal: { name: SIGHP, pid_file: /x } } }
  - { name: g, from: { file: /x }, validate: "[" }
  - { name: h, from: { file: /x }, template: "x" }
  - { name: i, from: { file: /x }, refresh: 10ms }
"#,
    )
    .unwrap_err();
    for line in [
        "secrets.yaml:2: backends.aws: this backend is not supported yet",
        "secrets.yaml:3: backends.vault.address: the token and the secrets would travel in the clear",
        "secrets.yaml:3: backends.vault.auth.spiffe_jwt: this way in is not supported yet",
        "secrets.yaml:6: files[0].name: \"../etc/passwd\" must be a plain file name",
        "secrets.yaml:7: files[1].mode: must be file permissions",
        "secrets.yaml:8: files[2].from.azure: this backend is not supported yet",
        "secrets.yaml:9: files[3].template: unknown name \"vualt\"; did you mean \"vault\"?",
        "secrets.yaml:10: files[4].template: line 1 of the template:",
        "secrets.yaml:11: files[5].on_change.restart: is not supported yet",
        "secrets.yaml:12: files[6].on_change.signal.name: \"SIGHP\" is not one of",
        "secrets.yaml:13: files[7].validate: is not a regular expression",
        "secrets.yaml:14: files[8]: must have only one of the keys from, template",
        "secrets.yaml:15: files[9].refresh: \"10ms\" is out of range",
    ] {
        assert!(problems.contains(line), "{line}\n\n{problems}");
    }
}

#[test]
fn references_need_their_backend_and_names_are_given_once() {
    let problems = load(
        "directory: /x\nfiles:\n  - { name: a, from: { vault: kv/a, key: b } }\n  - { name: b, template: \"{{ vault('kv').x }}{{ file('rel') }}\" }\n",
    )
    .unwrap_err();
    assert!(problems.contains("files[0].from.vault: vault kv/a: there is no vault under backends"), "{problems}");
    assert!(problems.contains("files[1].template: \"kv\" must be the mount and the path"), "{problems}");
    let problems =
        load("directory: /x\nfiles:\n  - { name: a, from: { file: /a } }\n  - { name: a, from: { file: /b } }\n");
    assert!(problems.unwrap_err().contains("a file named \"a\" stands above already"));
}
