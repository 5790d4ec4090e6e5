"""What a language model is asked: the two calls of Premonition, in our own words and with exemplars of our own.

The road (read in source: cl-premonition/premonition, Get_SD_Prompts_From_Realm.ipynb): realm -> subtypes, then for
every subtype -> classes with descriptions. Both calls are one-shot: a system message, an exemplar question and answer,
and the question. The requirements are the notebook's, paraphrased; the counts, the description limit and the templates
are its. Its protocol is CSV; JSON, which a backend can enforce, is asked for in otherwise equal words (our decision).
"""

import json
import string
from collections.abc import Sequence

from cilkit.errors import UserError
from cilkit.realms.parsing import COLUMNS, DESCRIPTION_LIMIT

VERSION = 1  # of the CSV wording below: kept replies name the version that they answer
JSON_VERSION = 1  # of the JSON wording
PROTOCOLS = {"csv": f"csv {VERSION}", "json": f"json {JSON_VERSION}"}  # and the template version that a reply keeps
FIELDS = ("name", "scientific_name", "description", "subtype", "realm")  # what a template of one's own may name
EXCLUDED = 2000  # characters of the names that a model is told not to list again; our decision
KINDS = ("object", "biological", "free")
BIOLOGICAL = ("birds", "plants", "insects")  # the notebook's hand-written list of biological realms
SUBTYPES = 20  # subtypes asked of an object realm; of a biological realm all scientific orders are asked
PER_SUBTYPE = {"object": 10, "biological": 20}  # classes asked for each subtype
SAMPLING = {"temperature": 0.2, "max_tokens": 2000}  # the notebook's, for live models

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_SUBTYPES_SYSTEM = {
    "object": (
        "You are given a theme. List its {subtypes} most common subcategories, or fewer where fewer exist. "
        "{form} Name no subcategory twice and explain nothing. "
        "When you are asked for the same theme again, give the same answer again."
    ),
    "biological": (
        "You are given a group of living things. List the Latin names of all scientific orders in it. "
        "{form} Name no order twice and explain nothing. "
        "When you are asked for the same group again, give the same answer again."
    ),
}
_SUBTYPES_FORM = {
    "csv": "Write one line, separated by commas.",
    "json": 'Write JSON of the form {"subtypes": ["...", "..."]}.',
}
_SUBTYPES_EXEMPLAR = {
    "object": (
        "Musical instruments",
        "plucked strings, bowed strings, struck strings, flutes, single reeds, double reeds, bagpipes, trumpets, "
        "horns, trombones, tubas, organs, accordions, keyboards, drums, cymbals, gongs, bells, xylophones, rattles",
    ),
    "biological": (
        "Amphibians",
        "anura, caudata, gymnophiona",
    ),
}
_CLASSES_SYSTEM = """Your answer becomes the input text of Stable Diffusion, a model that paints images from text.
You are given {given}.
1. Answer with {a_list_of}{count} different {members}, chosen at random.
2. For each, describe in at most {limit} characters what a photograph shows of it that sets it apart from its relatives.
3. {form}
5. Where fewer than {count} exist, give the shorter list and do not explain it.
6. List only members of what you are given, and each only once.
7. When you are asked for the same again, give the same answer again.
8. Leave out how it sounds, smells, tastes or feels to the touch."""
_CLASSES_FORM = {
    "csv": """Write CSV with ';' between the fields, in the columns {columns}.
4. Never write ';' inside a field, and never write '**'.""",
    "json": """Write JSON: {{"classes": [{{"name": "...", "scientific_name": {latin}, "description": "..."}}, ...]}}.
4. Write plain text in every field, without any markup.""",
}
_GIVEN = {
    "object": "a physical object or concept related to the theme '{realm}'",
    "biological": "the Latin name of a scientific order of {realm}",
}
_MEMBERS = {"object": "types, kinds or examples of it", "biological": "species of it that are not extinct"}

_CHAIRS = """armchair; Deep upholstered seat with two padded arms and a high back.
rocking chair; Wooden chair on two curved runners, with a slatted back.
bar stool; Tall narrow seat without a back, four long legs joined by a foot ring.
folding chair; Flat seat and back on crossed metal legs with visible hinges.
swivel chair; Rounded office seat on one column above five feet with castors.
deck chair; Striped cloth hung between two crossed wooden frames.
wing chair; Tall back with two wings at head height, short turned legs.
bentwood chair; Thin round seat, back and legs of bent dark rods.
bean bag; Shapeless cloth sack, sunken in the middle, without any legs.
throne; Tall carved back, gilded arms, red cushion, standing on a step."""
_CAUDATA = """Salamandra salamandra; fire salamander; Glossy black body with large irregular yellow blotches.
Salamandra atra; alpine salamander; Plain shiny black all over, ribbed flanks, short tail.
Triturus cristatus; great crested newt; Dark warty skin, orange belly with black spots, jagged crest in males.
Lissotriton vulgaris; smooth newt; Small and brown with round dark spots, smooth low wavy crest.
Ichthyosaura alpestris; alpine newt; Blue-grey back, plain orange belly, spotted line along the flank.
Pleurodeles waltl; Iberian ribbed newt; Large flat head, grey warty skin, row of orange bumps on each side.
Ambystoma mexicanum; axolotl; Pale wide head with three pairs of feathery red gills.
Ambystoma tigrinum; tiger salamander; Thick dark body with bold yellow bars and spots.
Ambystoma maculatum; spotted salamander; Blue-black with two rows of round yellow spots along the back.
Ambystoma opacum; marbled salamander; Stout and black with broad silvery crossbands.
Cryptobranchus alleganiensis; hellbender; Flat brown head and body with loose wrinkled folds along the sides.
Andrias japonicus; Japanese giant salamander; Huge mottled brown body, broad flat warty head, tiny eyes.
Necturus maculosus; mudpuppy; Grey-brown spotted body with bushy dark red gills.
Siren lacertina; greater siren; Eel-like olive body, two small front legs only, no hind legs.
Amphiuma means; two-toed amphiuma; Long dark eel-like body with four minute legs.
Proteus anguinus; olm; Long pinkish-white body, no visible eyes, short red gills.
Plethodon cinereus; red-backed salamander; Slender with one straight rusty red stripe down the back.
Plethodon glutinosus; slimy salamander; Shiny black with scattered white flecks.
Eurycea bislineata; two-lined salamander; Thin yellow body with two dark lines from eye to tail.
Taricha granulosa; rough-skinned newt; Grainy dark brown back against a bright orange belly."""


def _numbered(rows: str, kind: str) -> str:
    lines = [f"{number}; {row}" for number, row in enumerate(rows.splitlines(), 1)]
    return "\n".join(["; ".join(COLUMNS[kind]), *lines])


_CLASSES_EXEMPLAR = {
    "object": ("chairs", _numbered(_CHAIRS, "object")),
    "biological": ("caudata", _numbered(_CAUDATA, "biological")),
}


def kind_of(realm: str) -> str:
    """The kind of a realm by the notebook's hand-written list; name the kind yourself for any other living things."""
    return "biological" if realm.casefold() in BIOLOGICAL else "object"


def subtypes_messages(realm: str, kind: str, subtypes: int = SUBTYPES, protocol: str = "csv") -> list[Message]:
    """The first call: the realm's subtypes. A free realm is asked as an object realm is."""
    kind = _asked(kind)
    question, answer = _SUBTYPES_EXEMPLAR[kind]
    if protocol == "json":
        answer = json.dumps({"subtypes": answer.split(", ")})
    system = _SUBTYPES_SYSTEM[kind].format(subtypes=subtypes, form=_SUBTYPES_FORM[protocol])
    return _one_shot(system, (question, answer), realm)


def classes_messages(
    realm: str, kind: str, subtype: str, count: int | None = None, protocol: str = "csv", exclude: Sequence[str] = ()
) -> list[Message]:
    """The second call, once a subtype: its classes and their descriptions.

    exclude: names not to list again; the last of them, up to EXCLUDED characters, are told.
    """
    kind = _asked(kind)
    form = _CLASSES_FORM[protocol].format(
        columns="; ".join(COLUMNS[kind]), latin='"..."' if kind == "biological" else '""'
    )
    system = _CLASSES_SYSTEM.format(
        given=_GIVEN[kind].format(realm=realm),
        a_list_of="a numbered list of " if protocol == "csv" else "",
        count=count or PER_SUBTYPE[kind],
        members=_MEMBERS[kind],
        limit=DESCRIPTION_LIMIT,
        form=form,
    )
    if exclude:
        system += f"\n9. List none of these: {_last(exclude)}."
    question, answer = _CLASSES_EXEMPLAR[kind]
    return _one_shot(system, (question, _as_json(answer, kind) if protocol == "json" else answer), subtype)


def again_messages(messages: Sequence[Message], reply: str, problem: str) -> list[Message]:
    """The conversation after a reply that gave nothing: what came, and what was wrong with it."""
    said = {"role": "assistant", "content": reply[:EXCLUDED] or "(nothing)"}
    why = f"That could not be read: {problem[:300]}. Answer again, in the form asked for and with nothing around it."
    return [*messages, said, {"role": "user", "content": why}]


def _last(names: Sequence[str]) -> str:
    kept, length = [], 0
    for name in reversed(names):
        length += len(name) + 2
        if length > EXCLUDED:
            break
        kept.append(name)
    return "; ".join(reversed(kept))


def _as_json(exemplar: str, kind: str) -> str:
    """The exemplar's rows as the JSON that is asked for, a class a line."""
    rows = [line.split("; ", 3 if kind == "biological" else 2)[1:] for line in exemplar.splitlines()[1:]]
    rows = [[row[1], row[0], row[2]] if kind == "biological" else [row[0], "", row[1]] for row in rows]
    classes = [json.dumps(dict(zip(("name", "scientific_name", "description"), row, strict=True))) for row in rows]
    return '{"classes": [\n' + ",\n".join(classes) + "\n]}"


def check_kind(kind: str) -> str:
    """The kind; UserError for one that is none."""
    if kind not in KINDS:
        raise UserError(f"realm kind {kind!r} is unknown; expected one of {', '.join(KINDS)}")
    return kind


def _asked(kind: str) -> str:
    """The kind whose words are used: a free realm is asked as an object realm is."""
    return "object" if check_kind(kind) == "free" else kind


def _one_shot(system: str, exemplar: tuple[str, str], question: str) -> list[Message]:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": exemplar[0]},
        {"role": "assistant", "content": exemplar[1]},
        {"role": "user", "content": question},
    ]


def check_template(template: str) -> str:
    """A template of one's own, e.g. "A pencil drawing of {name}, {description}"; UserError for one that is none."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"template {template!r} cannot be read ({error}); write fields as {{name}}") from None
    for field, form, conversion in parts:
        if field not in FIELDS or form or conversion:
            raise UserError(f"template {template!r} has a field {field!r}; expected {', '.join(FIELDS)}, in braces")
    if not {"name", "scientific_name", "description"} & {field for field, *_ in parts}:
        raise UserError(f"template {template!r} gives every class the same prompt; put {{name}} into it")
    return template


def image_prompt(
    kind: str, name: str, description: str, scientific_name: str = "", template: str = "", **others: str
) -> str:
    """The text-to-image prompt, by the notebook's templates; without a description it ends after the name.

    biological: `A photograph of a {common} ({latin}): {description}`; object: `A photograph of {item}: {description}`.
    template: one of one's own instead, over name, scientific_name, description and `others` (subtype, realm).
    """
    if template:
        filled = template.format(name=name, scientific_name=scientific_name, description=description, **others)
        return filled if description else filled.rstrip(" ,;:-")
    item = name
    if kind == "biological":
        latin = f" ({scientific_name})" if scientific_name and scientific_name != name else ""
        item = f"a {name}{latin}"
    return f"A photograph of {item}: {description}" if description else f"A photograph of {item}"
