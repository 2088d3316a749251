//! The JSON schema of a scenario file, for editors, and the descriptions of its fields, for errors.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Scenario;

/// JSON schema (draft 2020-12) of a scenario file.
pub fn schema() -> Value {
    let mut schema =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Scenario>().to_value();
    schema["title"] = json!("Scenario of the bench");
    add_profiles(&mut schema);
    schema
}

/// `profile` holds tables of the same fields, none of them required.
fn add_profiles(schema: &mut Value) {
    let Some(Value::Object(mut partial)) = schema.get("$defs").cloned() else { return };
    let mut tables = Map::new();
    if let Some(fields) = schema["properties"].as_object() {
        for (name, field) in fields {
            let mut field = field.clone();
            if let Some(object) = field.as_object_mut() {
                object.remove("default");
            }
            if field.to_string().contains("#/$defs/") && name != "experiment" && name != "figures" {
                to_partial(&mut field);
                tables.insert(name.clone(), field);
            }
        }
    }
    let mut names = Map::new();
    for (name, mut definition) in std::mem::take(&mut partial) {
        to_partial(&mut definition);
        if let Some(object) = definition.as_object_mut() {
            object.remove("required");
        }
        names.insert(format!("{name}.partial"), definition);
    }
    if let Some(definitions) = schema["$defs"].as_object_mut() {
        definitions.extend(names);
    }
    schema["properties"]["profile"] = json!({
        "description": "Profiles by name: tables laid over those of the file by `--profile NAME`.",
        "type": "object",
        "additionalProperties": {"type": "object", "properties": tables, "additionalProperties": false},
    });
}

fn to_partial(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match value {
                    Value::String(text) if key == "$ref" => text.push_str(".partial"),
                    _ => to_partial(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(to_partial),
        _ => {}
    }
}

/// The least and the largest number that may stand at a path, where the schema says both.
pub(super) fn range(path: &[String]) -> Option<(Value, Value)> {
    let schema = schema();
    let at = field(&schema, path)?;
    Some((at.get("minimum")?.clone(), at.get("maximum")?.clone()))
}

/// The schema of the field at a path.
fn field<'a>(schema: &'a Value, path: &[String]) -> Option<&'a Value> {
    let mut at = schema;
    for key in path {
        at = resolve(schema, at).get("properties")?.get(key)?;
    }
    Some(at)
}

/// What the field at a path is, in the words of its documentation, on one line.
pub(super) fn description(path: &[String]) -> Option<String> {
    let schema = schema();
    let at = field(&schema, path)?;
    let text = at.get("description").or_else(|| resolve(&schema, at).get("description"))?.as_str()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Follows `$ref`, also through the `anyOf` of an optional table.
fn resolve<'a>(schema: &'a Value, at: &'a Value) -> &'a Value {
    let reference =
        at.get("$ref").or_else(|| at.get("anyOf")?.as_array()?.iter().find_map(|choice| choice.get("$ref")));
    reference
        .and_then(Value::as_str)
        .and_then(|r| r.strip_prefix("#/$defs/"))
        .and_then(|name| schema["$defs"].get(name))
        .unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number in a value, with what stands above it.
    fn numbers<'a>(value: &'a Value, name: &str, found: &mut Vec<(String, &'a Value)>) {
        let kind = value.get("type").map(ToString::to_string).unwrap_or_default();
        if kind.contains("integer") || kind.contains("number") {
            found.push((name.to_owned(), value));
        }
        match value {
            Value::Object(object) => {
                object.iter().for_each(|(key, value)| numbers(value, &format!("{name}/{key}"), found));
            }
            Value::Array(items) => items.iter().for_each(|item| numbers(item, name, found)),
            _ => {}
        }
    }

    #[test]
    fn every_number_of_a_scenario_has_a_range() {
        let schema = schema();
        let mut found = Vec::new();
        numbers(&schema, "", &mut found);
        assert!(found.len() > 15, "{found:?}");
        for (name, value) in found {
            assert!(value.get("minimum").is_some() && value.get("maximum").is_some(), "{name}: {value}");
        }
    }
}
