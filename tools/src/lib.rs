//! The library behind the niwaki command.
