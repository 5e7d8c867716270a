use super::*;
use proptest::prelude::*;
use serde_json::json;
use test_case::test_case;

fn text(of: &str) -> Text {
    Text::new(of, Comments::Allowed).unwrap()
}

fn inserted(into: &str, path: &[&str]) -> String {
    let mut text = text(into);
    text.insert(path, &[("ours".to_owned(), json!({"k": 1}))]).unwrap();
    text.into_string()
}

fn removed(from: &str, path: &[&str]) -> String {
    let mut text = text(from);
    text.remove(path, |name, _| name.starts_with("ours")).unwrap();
    text.into_string()
}

#[test_case("{}" => r#"{"ours": {"k":1}}"#; "empty")]
#[test_case("{\n}" => "{\n  \"ours\": {\n    \"k\": 1\n  }\n}"; "empty lines")]
#[test_case(r#"{"a": 1}"# => r#"{"a": 1, "ours": {"k":1}}"#; "one line")]
#[test_case("{\n    \"a\": 1\n}\n" => "{\n    \"a\": 1,\n    \"ours\": {\n        \"k\": 1\n    }\n}\n"; "the user's indentation")]
#[test_case("{\n\t\"a\": 1\n}" => "{\n\t\"a\": 1,\n\t\"ours\": {\n\t\t\"k\": 1\n\t}\n}"; "tabs")]
#[test_case("{\n  \"a\": 1 // mine\n}" => "{\n  \"a\": 1, // mine\n  \"ours\": {\n    \"k\": 1\n  }\n}"; "a comment stays with its line")]
#[test_case("{ /* x */ }" => "{ /* x */\"ours\": {\"k\":1} }"; "only a comment")]
#[test_case("\u{feff}{}" => "\u{feff}{\"ours\": {\"k\":1}}"; "byte order mark")]
fn insert(into: &str) -> String {
    inserted(into, &[])
}

#[test_case(r#"{"ours": 1}"# => "{}"; "only")]
#[test_case(r#"{"ours": 1, "a": 2}"# => r#"{ "a": 2}"#; "first")]
#[test_case(r#"{"a": 2, "ours": 1}"# => r#"{"a": 2}"#; "last")]
#[test_case(r#"{"a": 2, "ours": 1, "b": 3}"# => r#"{"a": 2, "b": 3}"#; "middle")]
#[test_case(r#"{"ours1": 1, "a": 2, "ours2": 1, "ours3": 1}"# => r#"{ "a": 2}"#; "several")]
#[test_case("{\"a\": 1, // n\n \"ours\": 2,\n \"b\": 3}" => "{\"a\": 1, // n\n \"b\": 3}"; "after a comment")]
#[test_case("{ // n\n \"ours\": 2, \"b\": 3}" => "{ // n\n \"b\": 3}"; "a comment keeps its end")]
#[test_case("{\"a\": 1, // n\n \"ours\": 2}" => "{\"a\": 1 // n\n}"; "a comment keeps its end at the last")]
#[test_case("{\"a\": 1, // n\n \"ours\": 2, // m\n \"ours2\": 3\n}" => "{\"a\": 1 // n\n // m\n}"; "comments are never ours")]
fn remove(from: &str) -> String {
    let text = removed(from, &[]);
    parse(&text, Comments::Allowed).unwrap();
    text
}

#[test]
fn missing_objects_are_made() {
    let text = inserted("{\n  \"x\": 1\n}\n", &["projects", "/workspace"]);
    assert_eq!(
        text,
        "{\n  \"x\": 1,\n  \"projects\": {\n    \"/workspace\": {\n      \"ours\": {\n        \"k\": 1\n      }\n    }\n  }\n}\n"
    );
}

#[test_case(r#"{"a": 1}"# => EditError::NotAnObject { line: 1, path: "\"a\"".into() }; "a number in the way")]
#[test_case("{\"a\": {},\n \"a\": {}}" => EditError::Twice { line: 1, name: "a".into() }; "twice")]
fn refused(into: &str) -> EditError {
    text(into).insert(&["a"], &[("ours".to_owned(), 1)]).unwrap_err()
}

#[test]
fn what_is_set_stays_or_is_replaced_as_asked() {
    let mut edited = text(r#"{"a": false, "b": {"c": "x"}}"#);
    edited.set_if_missing(&["a"], true).unwrap();
    edited.set_if_missing(&["d"], true).unwrap();
    edited.set(&["b", "c"], true).unwrap();
    assert_eq!(edited.into_string(), r#"{"a": false, "b": {"c": true}, "d": true}"#);
}

/// JSON texts as people write them: any layout, with comments.
fn any_text() -> impl Strategy<Value = String> {
    let blank = || {
        proptest::collection::vec(
            prop_oneof![
                3 => Just(" ".to_owned()),
                3 => Just("\n".to_owned()),
                1 => Just("\t".to_owned()),
                1 => Just("\r\n".to_owned()),
                1 => Just("// note: {\"a\", \n".to_owned()),
                1 => Just("/* b */".to_owned()),
            ],
            0..3,
        )
        .prop_map(|parts| parts.concat())
    };
    let scalar = prop_oneof![Just("1".to_owned()), Just("\"http://x\"".to_owned()), Just("null".to_owned())];
    let value = (scalar, blank(), blank()).prop_map(|(v, a, b)| format!("{a}{v}{b}"));
    let object = move |value: BoxedStrategy<String>| {
        (proptest::collection::vec((blank(), "[a-d]", value), 0..4), blank())
            .prop_map(|(members, end)| {
                let mut seen = Vec::new();
                let members: Vec<String> = members
                    .into_iter()
                    .filter(|(_, name, _)| {
                        !seen.contains(name) && {
                            seen.push(name.clone());
                            true
                        }
                    })
                    .map(|(before, name, value)| format!("{before}\"{name}\":{value}"))
                    .collect();
                format!("{{{}{end}}}", members.join(","))
            })
            .boxed()
    };
    let inner = object(value.clone().boxed());
    object(prop_oneof![value, inner].boxed())
}

proptest! {
    #[test]
    fn removing_what_was_inserted_gives_the_bytes_from_before(before in any_text(), names in 1usize..4) {
        let mut edited = text(&before);
        let entries: Vec<_> = (0..names).map(|n| (format!("ours{n}"), json!({"k": [n]}))).collect();
        edited.insert(&[], &entries).unwrap();
        let with = edited.clone().into_string();
        let node = parse(&with, Comments::Allowed).unwrap().root;
        prop_assert!(entries.iter().all(|(name, value)| node.get(name).is_some_and(|m| m.value.value() == *value)));
        edited.remove(&[], |name, _| name.starts_with("ours")).unwrap();
        prop_assert_eq!(edited.into_string(), before);
    }

    #[test]
    fn a_made_object_goes_without_a_trace(before in any_text()) {
        let mut edited = text(&before).spelling_made_objects("\t");
        edited.insert(&["made"], &[("ours".to_owned(), 1)]).unwrap();
        edited.remove(&["made"], |name, _| name == "ours").unwrap();
        edited.remove_made("made").unwrap();
        // Lines may be left where the object was laid out in lines; nothing else.
        prop_assert_eq!(edited.into_string(), before);
    }

    #[test]
    fn any_removal_keeps_the_rest(before in any_text()) {
        let mut expected = parse(&before, Comments::Allowed).unwrap().root.value();
        expected.as_object_mut().unwrap().retain(|name, _| name != "a" && name != "c");
        let mut edited = text(&before);
        edited.remove(&[], |name, _| name == "a" || name == "c").unwrap();
        let after = edited.into_string();
        prop_assert_eq!(parse(&after, Comments::Allowed).unwrap().root.value(), expected);
        for note in ["// note", "/* b */"] {
            let inside_removed = before.matches(note).count() - after.matches(note).count();
            // Only comments inside a removed value may go with it.
            prop_assert!(inside_removed == 0 || before.contains("\"a\"") || before.contains("\"c\""));
        }
    }
}
