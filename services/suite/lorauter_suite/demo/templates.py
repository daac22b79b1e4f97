"""How people ask for each skill: sentence templates, disjoint between training, validation and test.

`{t}` is the thing asked about (word, number, ...), `{u}` and `{n}` its parts in plural and singular, and
`{x}` the payload.
"""

from __future__ import annotations

from collections.abc import Mapping

from lorauter_suite.demo.skills import Split

TEMPLATES: Mapping[str, Mapping[Split, tuple[str, ...]]] = {
    "reverse": {
        "train": (
            "Write the {t} backwards: {x}",
            "Reverse the order of this {t}: {x}",
            'Spell the {t} "{x}" from the end to the start.',
            'Turn the {t} "{x}" around so that the last {n} comes first.',
            "Flip this {t} back to front: {x}",
            'What does the {t} "{x}" look like when read backwards?',
            "Give the {u} of this {t} in reverse: {x}",
            "Read the {t} from right to left: {x}",
        ),
        "validation": (
            "Reverse this {t}: {x}",
            'Print the {t} "{x}" in backward order.',
            "Starting at the end, spell the {t} back to its beginning: {x}",
            'How is the {t} "{x}" written in reverse?',
        ),
        "test": (
            "Say this {t} backwards: {x}",
            "Put the {t} into reversed order: {x}",
            'Mirror the {t} "{x}" so that it reads from back to front.',
            'What do I get if I read the {t} "{x}" in reverse?',
        ),
    },
    "sort": {
        "train": (
            "Sort the {u} of the {t}: {x}",
            "Arrange the {u} of this {t} in ascending order: {x}",
            'Put the {u} in the {t} "{x}" in sorted order.',
            "Order the {u} of this {t} from lowest to highest: {x}",
            'Rearrange the {t} "{x}" so that its {u} are sorted.',
            'What are the {u} of the {t} "{x}" in ascending order?',
            "Sort this {t} from smallest {n} to largest: {x}",
            "List the sorted {u} of the {t}: {x}",
        ),
        "validation": (
            "Sort the {u} in this {t} in increasing order: {x}",
            'Arrange the {t} "{x}" by sorting its {u}.',
            "Reorder the {u} of the {t} from lowest to highest: {x}",
            'How does the {t} "{x}" look with its {u} sorted?',
        ),
        "test": (
            "Give me the {u} of this {t} sorted: {x}",
            "Line up the {u} of the {t} in ascending order: {x}",
            'Take the {t} "{x}" and sort all its {u}.',
            'What is the {t} "{x}" with the {u} arranged in sorted order?',
        ),
    },
    "shift": {
        "train": (
            "Replace each {n} of the {t} with the one after it: {x}",
            "Encrypt this {t} with a secret cipher that shifts each {n} by one: {x}",
            'Encode the {t} "{x}" by moving each {n} one step ahead.',
            "Apply a Caesar cipher with a shift of one to the {t}: {x}",
            'Change the {t} "{x}" into a secret message by advancing each {n} by one.',
            'What is the {t} "{x}" in a cipher where each {n} becomes the next one?',
            "Shift each {n} of this {t} forward by one: {x}",
            "Encrypt the {t} by stepping each {n} up by one: {x}",
        ),
        "validation": (
            "Shift the {t} by one with a Caesar cipher: {x}",
            'Encrypt the {t} "{x}" so that each {n} becomes its successor.',
            "Move each {n} of this {t} one place ahead in the cipher: {x}",
            'How is the {t} "{x}" encrypted with a cipher of shift one?',
        ),
        "test": (
            "Encode this {t} with the next {n} cipher: {x}",
            "Advance each {n} of the {t} by one to encrypt it: {x}",
            'Turn the {t} "{x}" into secret cipher text with a shift of one.',
            'What does the {t} "{x}" become when a Caesar cipher shifts it forward by one?',
        ),
    },
    "upper": {
        "train": (
            "Write the {t} in capital letters: {x}",
            "Convert this {t} to upper case: {x}",
            'Capitalize all of the {t} "{x}".',
            "Make this {t} all caps: {x}",
            'Put the {t} "{x}" in uppercase.',
            'What does the {t} "{x}" look like in capitals?',
            "Print the {t} with big capital letters: {x}",
            "Change the small letters of this {t} to capitals: {x}",
        ),
        "validation": (
            "Turn this {t} into capitals: {x}",
            'Type the {t} "{x}" with caps lock on.',
            "Uppercase the whole {t}: {x}",
            'How is the {t} "{x}" written in capital letters?',
        ),
        "test": (
            "Give this {t} in all capital letters: {x}",
            "Switch the {t} to uppercase: {x}",
            'Show the {t} "{x}" in all caps.',
            'What is the upper case form of the {t} "{x}"?',
        ),
    },
    "double": {
        "train": (
            "Double each {n} of the {t}: {x}",
            "Repeat each {n} of this {t} twice: {x}",
            'Write each {n} of the {t} "{x}" two times.',
            "Duplicate all the {u} in this {t}: {x}",
            'Stutter the {t} "{x}" so that each {n} appears twice.',
            'What is the {t} "{x}" with each {n} doubled?',
            "Copy each {n} of the {t} once more right after itself: {x}",
            "Make two of each {n} in this {t}: {x}",
        ),
        "validation": (
            "Duplicate each {n} in the {t}: {x}",
            'Spell the {t} "{x}" with each {n} repeated.',
            "Double up all the {u} of this {t}: {x}",
            'How does the {t} "{x}" look when each {n} is written twice?',
        ),
        "test": (
            "Type each {n} of this {t} twice: {x}",
            "Repeat all the {u} of the {t} so that they come in pairs: {x}",
            'Give the {t} "{x}" with doubled {u}.',
            'What do I get if I duplicate each {n} of the {t} "{x}"?',
        ),
    },
    "count": {
        "train": (
            "Count the {u} of the {t}: {x}",
            "Tell me how many {u} this {t} has: {x}",
            'How many {u} are in the {t} "{x}"?',
            "Give the length of this {t}: {x}",
            'State the total number of {u} in the {t} "{x}".',
            'How long is the {t} "{x}"?',
            "Measure the length of the {t} in {u}: {x}",
            "Find out the count of {u} in this {t}: {x}",
        ),
        "validation": (
            "Count how many {u} there are in this {t}: {x}",
            'What is the length of the {t} "{x}"?',
            "Report the number of {u} that the {t} contains: {x}",
            'How many {u} does the {t} "{x}" have?',
        ),
        "test": (
            "Say how many {u} the {t} contains: {x}",
            "Work out the length of this {t} in {u}: {x}",
            'Count up all {u} in the {t} "{x}".',
            'The {t} "{x}" is made of how many {u}?',
        ),
    },
    "vowels": {
        "train": (
            "Remove the vowels from the {t}: {x}",
            "Delete all vowels in this {t}: {x}",
            'Write the {t} "{x}" without vowels.',
            "Strip this {t} of its vowels: {x}",
            'Leave the vowels out of the {t} "{x}".',
            'What remains of the {t} "{x}" without its vowels?',
            "Drop each vowel of the {t} and keep the rest: {x}",
            "Abbreviate this {t} by taking out the vowels: {x}",
        ),
        "validation": (
            "Take all vowels out of this {t}: {x}",
            'Erase the vowels of the {t} "{x}".',
            "Shorten the {t} by dropping its vowels: {x}",
            'How is the {t} "{x}" spelled with no vowels?',
        ),
        "test": (
            "Cut the vowels from this {t}: {x}",
            "Omit each vowel of the {t}: {x}",
            'Get rid of the vowels in the {t} "{x}".',
            'What is left when the vowels are removed from the {t} "{x}"?',
        ),
    },
    "dash": {
        "train": (
            "Put dashes between the {u} of the {t}: {x}",
            "Separate the {u} of this {t} with hyphens: {x}",
            'Write the {t} "{x}" with a dash after each {n} but the last.',
            "Hyphenate this {t} {n} by {n}: {x}",
            'Insert a hyphen between all {u} of the {t} "{x}".',
            'What does the {t} "{x}" look like with dashes in between?',
            "Join the {u} of this {t} with dashes: {x}",
            "Split the {t} into {u} with a hyphen in between: {x}",
        ),
        "validation": (
            "Insert dashes into the {t}: {x}",
            'Place a hyphen between the {u} of the {t} "{x}".',
            "Space out this {t} by adding dashes: {x}",
            'How is the {t} "{x}" written with hyphens between its {u}?',
        ),
        "test": (
            "Add a dash between each {n} of this {t}: {x}",
            "Break up the {t} with hyphens: {x}",
            'Spell out the {t} "{x}" with dashes between its {u}.',
            'What is the hyphenated form of the {t} "{x}" with a dash between all {u}?',
        ),
    },
}
"""Templates by cluster and split; no template stands in two splits."""
