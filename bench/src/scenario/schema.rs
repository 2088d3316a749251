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

/// What the field at a path is, in the words of its documentation, on one line.
pub(super) fn description(path: &[String]) -> Option<String> {
    let schema = schema();
    let mut at = &schema;
    for key in path {
        at = resolve(&schema, at).get("properties")?.get(key)?;
    }
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
