"""The JSON Schema of a definition, with which editors complete and check keys.

``rayddl schema > pipelines/schema.json`` renews the copy next to the shipped definitions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from rayddl import plugins
from rayddl.config import Registered
from rayddl.data.config import SourceConfig
from rayddl.pipeline.definition.load import Top
from rayddl.stages.kinds import KINDS, Kind

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema(kinds: Mapping[str, Kind] = KINDS) -> dict[str, Any]:
    """Return the schema of definitions whose stages are of ``kinds``.

    It accepts what extends another definition, where required keys are missing. Checks that concern several keys are
    left to ``rayddl plan``.
    """
    models: dict[str, type[BaseModel]] = {name: kind.config for name, kind in kinds.items()}
    models["source"] = SourceConfig
    found, shared = models_json_schema(
        [(model, "validation") for model in models.values()], schema_generator=_Generator
    )
    references = {name: found[model, "validation"] for name, model in models.items()}
    for reference in references.values():
        # A definition may extend another one, which has the required keys.
        shared["$defs"][reference["$ref"].rpartition("/")[2]].pop("required", None)
    rules = [
        {"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": references[name]}
        for name in kinds
    ]
    keys: dict[str, dict[str, Any]] = {
        name: {"description": field.description or ""} for name, field in Top.model_fields.items()
    }
    keys["name"] |= {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]*$"}
    keys["seed"] |= {"type": "integer", "minimum": 0}
    keys["source"] |= references["source"]
    keys["description"] |= {"type": "string"}
    keys["stages"] |= {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": {"kind": {"anyOf": [{"enum": list(kinds)}, {"type": "string"}]}},
            "allOf": rules,
        },
    }
    keys["extends"] = {"type": "string", "description": "A definition that is the base of this one."}
    return {
        "$schema": _DRAFT,
        "title": "A definition of rayddl",
        "type": "object",
        "properties": keys,
        "additionalProperties": False,
        "anyOf": [{"required": ["extends"]}, {"required": ["name", "source", "stages"]}],
        "$defs": shared["$defs"],
    }


def text(kinds: Mapping[str, Kind] = KINDS) -> str:
    """Return the schema as JSON text."""
    return json.dumps(schema(kinds), indent=1, ensure_ascii=False)


class _Generator(GenerateJsonSchema):
    """Adds registered names as proposals; names of plugins that are not loaded stay valid."""

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        found = super().function_after_schema(schema)
        mark = getattr(schema["function"].get("function"), "__self__", None)
        if isinstance(mark, Registered):
            return {"anyOf": [{"enum": list(plugins.names(mark.group))}, found]}
        return found
