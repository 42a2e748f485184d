"""xgrammar's compiler without what its package imports beside it: torch and transformers.

Compiling a grammar needs neither. They cost each process that imports them 1.5 s of CPU and 230 MB.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# What xgrammar's tokenizer_info names in annotations, of tokenizers that are never given here.
UNUSED = ("PreTrainedTokenizerBase", "PreTrainedTokenizerFast")
WANTED = {
    "xgrammar.compiler": ("CompiledGrammar", "GrammarCompiler"),
    "xgrammar.tokenizer_info": ("TokenizerInfo", "VocabType"),
}


def install() -> None:
    """Make `import xgrammar` in this process give its compiler and vocabulary only.

    A later import of torch or transformers in this process is an ImportError.

    Cost: about 0.2 s of CPU and 40 MB, numpy and pydantic included.
    """
    found = find_spec("xgrammar")
    assert found is not None and "xgrammar" not in sys.modules, "must come before its import"
    package = ModuleType("xgrammar")
    package.__path__ = list(found.submodule_search_locations or ())
    stand_in = ModuleType("transformers")
    stand_in.__dict__.update(dict.fromkeys(UNUSED, object))
    sys.modules.update(xgrammar=package, transformers=stand_in)
    sys.modules["torch"] = None  # type: ignore[assignment] # tvm_ffi does without where it fails
    import_module("xgrammar.load_binding")
    for module, names in WANTED.items():
        for name in names:
            setattr(package, name, getattr(import_module(module), name))
    sys.modules["transformers"] = None  # type: ignore[assignment]
