"""What a language model is asked: the two calls of Premonition, in our own words and with exemplars of our own.

The road (read in source: cl-premonition/premonition, Get_SD_Prompts_From_Realm.ipynb): realm -> subtypes, then for
every subtype -> classes with descriptions. Both calls are one-shot: a system message, an exemplar question and answer,
and the question. The requirements are the notebook's, paraphrased; the counts, the description limit and the templates
are its.
"""

from cilkit.errors import UserError
from cilkit.realms.parsing import COLUMNS, DESCRIPTION_LIMIT

VERSION = 1  # of the wording below: kept replies name the version that they answer
KINDS = ("object", "biological", "free")
BIOLOGICAL = ("birds", "plants", "insects")  # the notebook's hand-written list of biological realms
SUBTYPES = 20  # subtypes asked of an object realm; of a biological realm all scientific orders are asked
PER_SUBTYPE = {"object": 10, "biological": 20}  # classes asked for each subtype
SAMPLING = {"temperature": 0.2, "max_tokens": 2000}  # the notebook's, for live models

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_SUBTYPES_SYSTEM = {
    "object": (
        "You are given a theme. List its {subtypes} most common subcategories, or fewer where fewer exist. "
        "Write one line, separated by commas. Name no subcategory twice and explain nothing. "
        "When you are asked for the same theme again, give the same answer again."
    ),
    "biological": (
        "You are given a group of living things. List the Latin names of all scientific orders in it. "
        "Write one line, separated by commas. Name no order twice and explain nothing. "
        "When you are asked for the same group again, give the same answer again."
    ),
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
1. Answer with a numbered list of {count} different {members}, chosen at random.
2. For each, describe in at most {limit} characters what a photograph shows of it that sets it apart from its relatives.
3. Write CSV with ';' between the fields, in the columns {columns}.
4. Never write ';' inside a field, and never write '**'.
5. Where fewer than {count} exist, give the shorter list and do not explain it.
6. List only members of what you are given, and each only once.
7. When you are asked for the same again, give the same answer again.
8. Leave out how it sounds, smells, tastes or feels to the touch."""
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


def subtypes_messages(realm: str, kind: str, subtypes: int = SUBTYPES) -> list[Message]:
    """The first call: the realm's subtypes."""
    return _one_shot(_SUBTYPES_SYSTEM[_asked(kind)].format(subtypes=subtypes), _SUBTYPES_EXEMPLAR[kind], realm)


def classes_messages(realm: str, kind: str, subtype: str, count: int | None = None) -> list[Message]:
    """The second call, once a subtype: its classes and their descriptions."""
    system = _CLASSES_SYSTEM.format(
        given=_GIVEN[_asked(kind)].format(realm=realm),
        count=count or PER_SUBTYPE[kind],
        members=_MEMBERS[kind],
        limit=DESCRIPTION_LIMIT,
        columns="; ".join(COLUMNS[kind]),
    )
    return _one_shot(system, _CLASSES_EXEMPLAR[kind], subtype)


def _asked(kind: str) -> str:
    if kind not in COLUMNS:
        raise UserError(f"realm kind {kind!r} is not asked of a language model; expected one of {', '.join(COLUMNS)}")
    return kind


def _one_shot(system: str, exemplar: tuple[str, str], question: str) -> list[Message]:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": exemplar[0]},
        {"role": "assistant", "content": exemplar[1]},
        {"role": "user", "content": question},
    ]


def image_prompt(kind: str, name: str, description: str, scientific_name: str = "") -> str:
    """The text-to-image prompt, by the notebook's templates; without a description it ends after the name.

    biological: `A photograph of a {common} ({latin}): {description}`; object: `A photograph of {item}: {description}`.
    """
    item = name
    if kind == "biological":
        latin = f" ({scientific_name})" if scientific_name and scientific_name != name else ""
        item = f"a {name}{latin}"
    return f"A photograph of {item}: {description}" if description else f"A photograph of {item}"
