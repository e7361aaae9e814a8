//! The JSON schema against the embedded policies, by a validator for the few keywords that it uses.

use serde_json::{Map, Value};

use super::super::{
    embedded::ALL,
    json_schema,
    yaml::{self, Node},
};

fn json(node: Node) -> Value {
    match node.value {
        yaml::Value::Null => Value::Null,
        yaml::Value::Bool(value) => Value::Bool(value),
        yaml::Value::Number(text) => serde_json::from_str(&text).unwrap(),
        yaml::Value::Text(text) => Value::String(text),
        yaml::Value::List(items) => items.into_iter().map(json).collect(),
        yaml::Value::Map(entries) => {
            Value::Object(entries.into_iter().map(|(key, value)| (key.name, json(value))).collect::<Map<_, _>>())
        }
    }
}

/// What does not fit. Panics at a keyword that it does not know, so that none is ignored.
fn errors(root: &Value, schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let Value::Object(schema) = schema else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (keyword, rule) in schema {
        let wrong = |what: &str| vec![format!("{path}: {what} {rule}: {value}")];
        found.extend(match keyword.as_str() {
            // Patterns are for editors; the parser has tests of its own for every form.
            "pattern" | "$schema" | "title" | "description" | "$defs" | "format" | "default" | "propertyNames" => {
                Vec::new()
            }
            "$ref" => {
                let name = rule.as_str().unwrap().rsplit('/').next().unwrap();
                errors(root, &root["$defs"][name], value, path)
            }
            "anyOf" | "oneOf" => {
                let options = rule.as_array().unwrap();
                if options.iter().any(|option| errors(root, option, value, path).is_empty()) {
                    Vec::new()
                } else {
                    wrong("fits none of")
                }
            }
            "type" => {
                let kind = match value {
                    Value::Null => "null",
                    Value::Bool(_) => "boolean",
                    Value::Number(_) => "integer",
                    Value::String(_) => "string",
                    Value::Array(_) => "array",
                    Value::Object(_) => "object",
                };
                let fits = rule == kind || rule.as_array().is_some_and(|kinds| kinds.iter().any(|rule| rule == kind));
                if fits { Vec::new() } else { wrong("type") }
            }
            "const" => {
                if rule == value {
                    Vec::new()
                } else {
                    wrong("const")
                }
            }
            "enum" => {
                if rule.as_array().unwrap().contains(value) {
                    Vec::new()
                } else {
                    wrong("enum")
                }
            }
            "minimum" => {
                if value.as_i64().is_none_or(|number| number >= rule.as_i64().unwrap()) {
                    Vec::new()
                } else {
                    wrong("minimum")
                }
            }
            "maximum" => {
                if value.as_i64().is_none_or(|number| number <= rule.as_i64().unwrap()) {
                    Vec::new()
                } else {
                    wrong("maximum")
                }
            }
            "minItems" => {
                if value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()) {
                    Vec::new()
                } else {
                    wrong("minItems")
                }
            }
            "minLength" => {
                if value.as_str().is_none_or(|text| text.len() as u64 >= rule.as_u64().unwrap()) {
                    Vec::new()
                } else {
                    wrong("minLength")
                }
            }
            "maxLength" => {
                if value.as_str().is_none_or(|text| text.len() as u64 <= rule.as_u64().unwrap()) {
                    Vec::new()
                } else {
                    wrong("maxLength")
                }
            }
            "items" => value.as_array().into_iter().flatten().flat_map(|item| errors(root, rule, item, path)).collect(),
            "required" => {
                let Some(object) = value.as_object() else { continue };
                rule.as_array()
                    .unwrap()
                    .iter()
                    .filter(|key| !object.contains_key(key.as_str().unwrap()))
                    .map(|key| format!("{path}: lacks {key}"))
                    .collect()
            }
            "properties" => {
                let Some(object) = value.as_object() else { continue };
                object
                    .iter()
                    .filter_map(|(key, value)| Some(errors(root, rule.get(key)?, value, &format!("{path}/{key}"))))
                    .flatten()
                    .collect()
            }
            "additionalProperties" => {
                let Some(object) = value.as_object() else { continue };
                let known = schema.get("properties").and_then(Value::as_object);
                let others = object.iter().filter(|(key, _)| known.is_none_or(|known| !known.contains_key(*key)));
                match rule {
                    Value::Bool(false) => others.map(|(key, _)| format!("{path}: unknown key {key}")).collect(),
                    rule => {
                        others.flat_map(|(key, value)| errors(root, rule, value, &format!("{path}/{key}"))).collect()
                    }
                }
            }
            other => panic!("the validator does not know `{other}` at {path}"),
        });
    }
    found
}

fn check(text: &str) -> Vec<String> {
    let schema = json_schema().to_value();
    errors(&schema, &schema, &json(yaml::parse(text).unwrap()), "")
}

#[test]
fn every_embedded_policy_fits() {
    for policy in ALL {
        assert_eq!(check(policy.text), Vec::<String>::new(), "{}", policy.name);
    }
    let all = "version: 1\nmode: audit\ndns: {resolvers: [192.0.2.1], queries: any, internal: [a], minTtl: 1s, grace: 0, maxStale: 1h, allowPrivate: [a.b]}\n\
               builtins: {loopback: true, arp: true, eapol: true, lldp: true, neighbour-discovery: true, mld: true, igmp: true, dhcpv4: true, dhcpv6: true}\n";
    assert_eq!(check(all), Vec::<String>::new());
    assert!(super::document(&[("p.yaml", all)], &[]).is_ok(), "the parser reads what the schema offers");
}

#[test]
fn what_the_parser_refuses_does_not_fit() {
    for text in [
        "mod: audit\n",
        "mode: enforced\n",
        "version: 2\n",
        "rules: []\n",
        "rules: [{name: x}]\n",
        "rules: [{name: x, to: []}]\n",
        "rules: [{name: x, to: [any], prots: [any]}]\n",
        "rules: [{name: x, to: [{set: a}], ports: [any]}]\n",
        "dns: {resolver: system}\n",
        "dns: {resolvers: sytem}\n",
        "builtins: {arp: 1}\n",
        // Nothing behind a key.
        "version:\n",
        "mode:\n",
        "dns:\n",
        "builtins:\n",
        "rules:\n",
        "dns: {resolvers: }\n",
        "dns: {queries: }\n",
        "dns: {internal: }\n",
        "dns: {minTtl: }\n",
        "dns: {grace: }\n",
        "dns: {maxStale: }\n",
        "dns: {allowPrivate: }\n",
        "builtins: {arp: }\n",
        "builtins: {dhcpv6: }\n",
        "rules: [{name: x, to: [any], ports: [any], why: }]\n",
        "rules: [{name: x, to: [any], ports: [any], action: }]\n",
        "rules: [{name: x, to: [any], ports: }]\n",
        "rules: [{name: x, to: [any], ports: [any], silence: }]\n",
    ] {
        assert!(!check(text).is_empty(), "{text}");
        assert!(super::document(&[("p.yaml", text)], &[]).is_err(), "{text}");
    }
}

#[test]
fn every_key_is_described() {
    let schema = json_schema().to_value();
    for key in ["mode", "dns", "builtins", "rules"] {
        assert!(
            schema["properties"][key].to_string().contains("description")
                || schema["properties"][key].to_string().contains("$ref"),
            "{key}"
        );
    }
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema).unwrap());
}
