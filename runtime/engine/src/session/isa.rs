//! Which instruction set the kernels use.

use super::engine::OpenError;
use niwaki_kernels::Isa;

/// Environment variable that overrides the choice, for tests and bug reports: the name of an [`Isa`].
const VARIABLE: &str = "NIWAKI_ISA";

/// The caller's choice, else the environment's, else the best of this CPU.
pub(super) fn choose(option: Option<Isa>) -> Result<Isa, OpenError> {
    let isa = match option {
        Some(isa) => isa,
        None => match std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
            None => return Ok(Isa::detect()),
            Some(name) => {
                let name = name.to_string_lossy();
                Isa::from_name(&name).ok_or_else(|| OpenError::UnknownIsa {
                    name: name.into_owned(),
                    known: names(Isa::ALL),
                })?
            }
        },
    };
    if isa.is_available() {
        Ok(isa)
    } else {
        Err(OpenError::UnavailableIsa {
            name: isa.name(),
            available: names(&Isa::available()),
        })
    }
}

fn names(isas: &[Isa]) -> String {
    isas.iter()
        .map(|isa| isa.name())
        .collect::<Vec<_>>()
        .join(", ")
}
