//! Compiles `proto/` without protoc, and writes what `src/proto.rs` includes: messages and service, the encoded descriptor
//! set for reflection, and of every field marked `debug_redact` a `Debug` that hides it and a `mask` that overwrites it.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor, Value};

const FILES: [&str; 2] = ["participant/v1/participant.proto", "participant/v1/participant_service.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;

    // The options of the project's own choosing survive only in protox's own encoding: prost-types has no field for
    // `debug_redact` and drops it.
    let encoded = compiler.encode_file_descriptor_set();
    let pool = DescriptorPool::decode(encoded.as_slice())?;
    let redacted: Vec<MessageDescriptor> = pool
        .all_messages()
        .filter(|message| {
            message.package_name() == "participant.v1" && message.fields().any(|f| is_redacted(&f))
        })
        .collect();
    if redacted.is_empty() {
        return Err("no field is marked debug_redact: the marks were lost on the way".into());
    }
    let code = debug_impls(&redacted)? + &mask_impls(&redacted)?;
    fs::write(out.join("redacted.rs"), code)?;
    fs::write(out.join("descriptor_set.bin"), encoded)?;

    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::proto::ParticipantCodec")
        .skip_debug(redacted.iter().map(|message| format!(".{}", message.full_name())))
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

fn is_redacted(field: &FieldDescriptor) -> bool {
    let options = field.options();
    options.get_field_by_name("debug_redact").is_some_and(|value| *value == Value::Bool(true))
}

/// `impl Debug` for each message: a redacted field shows that it is set, never what it holds.
fn debug_impls(messages: &[MessageDescriptor]) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    for message in messages {
        let name = message.name();
        writeln!(code, "impl ::core::fmt::Debug for {name} {{")?;
        writeln!(code, "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{")?;
        writeln!(code, "        f.debug_struct(\"{name}\")")?;
        for field in message.fields() {
            writeln!(code, "            .field(\"{}\", {})", field.name(), shown(&field)?)?;
        }
        writeln!(code, "            .finish()\n    }}\n}}")?;
    }
    Ok(code)
}

/// `mask` for each message: what a redacted field holds is overwritten, and one that holds nothing stays so.
fn mask_impls(messages: &[MessageDescriptor]) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    for message in messages {
        let name = message.name();
        writeln!(code, "impl {name} {{")?;
        writeln!(code, "    /// Overwrites what the contract marks as `debug_redact`, where it is set.")?;
        writeln!(code, "    pub fn mask(&mut self) {{")?;
        for field in message.fields().filter(is_redacted) {
            writeln!(code, "        {}", masked(&field)?)?;
        }
        writeln!(code, "    }}\n}}")?;
    }
    Ok(code)
}

fn masked(field: &FieldDescriptor) -> Result<String, Box<dyn Error>> {
    let name = rust_name(field);
    // Attributes are JSON, and stay so.
    let mask = if field.name() == "attributes" { "MASKED_JSON" } else { "MASKED" };
    match field.kind() {
        Kind::String if field.is_list() => Ok(format!("self.{name}.fill({mask}.to_owned());")),
        Kind::String => Ok(format!("if !self.{name}.is_empty() {{ self.{name} = {mask}.to_owned(); }}")),
        Kind::Message(message) if field.is_list() => {
            Ok(format!("self.{name}.iter_mut().for_each({}::mask);", message.name()))
        }
        other => Err(format!("{}: debug_redact on {other:?} is not handled", field.full_name()).into()),
    }
}

/// prost writes a field named like a keyword as a raw identifier; `type` is the one in this contract.
fn rust_name(field: &FieldDescriptor) -> &str {
    if field.name() == "type" { "r#type" } else { field.name() }
}

fn shown(field: &FieldDescriptor) -> Result<String, Box<dyn Error>> {
    let name = rust_name(field);
    if !is_redacted(field) {
        return Ok(match field.kind() {
            Kind::Enum(_) => format!("&self.{name}()"),
            _ => format!("&self.{name}"),
        });
    }
    match field.kind() {
        Kind::String | Kind::Message(_) if field.is_list() || !field.supports_presence() => {
            Ok(format!("&Redacted {{ empty: self.{name}.is_empty() }}"))
        }
        other => Err(format!("{}: debug_redact on {other:?} is not handled", field.full_name()).into()),
    }
}
