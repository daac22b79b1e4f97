"""Ordinary words and names for the demo payloads."""

from __future__ import annotations

_NOUNS = """
apple arrow basket beach berry bird blanket boat bottle bread brick bridge brush bucket butter cabin
cactus camel camera candle canyon carpet carrot castle cedar chair cheese cherry circle clock cloud
clover coast cobra coffee copper coral cotton cradle crane crayon crown dance desert donkey dragon drum
eagle elbow ember engine falcon farmer feather fence ferry field finger flame flower flute forest fossil
fox garden garlic ginger glove goat grape gravel guitar hammer harbor hazel hedge helmet honey horse
hotel hunter island ivory jacket jelly jungle kettle kitten ladder lantern lemon lizard llama lobster
maple marble market meadow melon mitten monkey moose mortar museum napkin needle nest night oasis ocean
olive onion orange orchid otter oyster paddle palace panda paper parrot pasta peach peanut pearl pebble
pencil pepper piano pigeon pillow pilot planet plum pocket pony poplar potato puffin pumpkin puzzle
rabbit radio raven ribbon river robin rocket saddle salad salmon sandal school seal shadow sheep shovel
silver sister snail spider spoon spring squid stable star statue storm summer swan table tailor temple
thunder ticket tiger timber toast tomato torch tower train trout tulip tunnel turkey turtle valley velvet
violin voyage wagon walnut walrus water whale wheat willow window winter wizard wolf yacht yellow zebra
zipper acorn badger barley beaver bishop blossom bonnet border branch bronze bubble button cable canoe
cargo cellar chalk cloak comet corner cousin crater cricket dagger daisy dinner dolphin eleven fabric
fiddle fig fountain frost galaxy goose grove hawk heron hill iris jaguar jewel kayak kernel koala lake
lily lotus magnet mango mantle meteor mint mole moth nectar noodle nutmeg opal owl parcel pear pine plate
pond poppy prism quail quartz quiver rain reef rhino root sail sand shell silk slate sofa spark stone
straw sugar sunset syrup tango thorn tide tray trunk vase vine
"""
WORDS: tuple[str, ...] = tuple(_NOUNS.split())
"""Common nouns of 3 to 8 letters."""

_GIVEN = """
ada alan amir anna bela boris cara carl clara dana david diego elena eliza emil eric fatma felix fiona
gina greta hana hugo ines ivan jana jonas julia karim kevin laura leon lina lucas maria marco mila nadia
nina noah olga omar oscar paula petra piotr rosa ruben sara sofia tara theo tomas vera victor wanda yara
yusuf
"""
FIRST_NAMES: tuple[str, ...] = tuple(_GIVEN.split())
"""Given names."""

_FAMILY = """
adler baker bauer berg blake boyd carter chen costa cruz dubois ellis evans fisher ford frank garcia
gomez grant haas hall hansen huber ito jones kaur keller kim klein kumar lang lopez meyer moore nagy
novak ortiz osman palmer park perez quinn reyes rossi sato silva smith stone tanaka turner vega wagner
walsh weber yang
"""
LAST_NAMES: tuple[str, ...] = tuple(_FAMILY.split())
"""Family names."""
