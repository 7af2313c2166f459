"""How sentences are read: thing, left out, colours, colours left out, k: reference kept, w: white ground."""

from __future__ import annotations

import pytest

from composir.models.photos.sentences import NOTHING, read_sentence
from composir.models.photos.vocabulary import find_senses, head_of

TABLE = """
but a koala                                  | koala              |          |        |       |
a koala instead                              | koala              |          |        |       |
the same with a koala                        | koala              |          |        |       |
koala instead of a dog                       | koala              | dog      |        |       |
a cat rather than a dog                      | cat                | dog      |        |       |
not scissors but pliers                      | pliers             | scissors |        |       |
no dog, a cat                                | cat                | dog      |        |       |
replace the dog with a cat                   | cat                | dog      |        |       |
replace it with a horse                      | horse              |          |        |       |
change the dog to a cat                      | cat                | dog      |        |       |
turn the dog into a cat                      | cat                | dog      |        |       |
swap the hammer for a wrench                 | wrench             | hammer   |        |       |
convert the car into a truck                 | truck              | car      |        |       |
the dog should be a cat                      | cat                | dog      |        |       |
the hammer is replaced by a screwdriver      | screwdriver        | hammer   |        |       |
the hammer becomes a screwdriver             | screwdriver        | hammer   |        |       |
a screwdriver instead of a hammer, please    | screwdriver        | hammer   |        |       |
with a dog instead                           | dog                |          |        |       |
but with a dog                               | dog                |          |        |       |
make it a castle                             | castle             |          |        |       |
it is a castle now                           | castle             |          |        |       |
is a cat now                                 | cat                |          |        |       |
I want a windmill in the same style          | windmill           |          |        |       |
show me a picture of a lighthouse            | lighthouse         |          |        |       |
I would like to find a photo of a bridge     | bridge             |          |        |       |
another bird                                 | bird               |          |        |       |
a different bird                             | bird               |          |        |       |
mice                                         | mice               |          |        |       |
apples                                       | apples             |          |        |       |
churches                                     | churches           |          |        |       |
women                                        | women              |          |        |       |
a building                                   | building           |          |        |       |
a café                                       | cafe               |          |        |       |
A DOG!                                       | dog                |          |        |       |
a tiger lily                                 | tiger lily         |          |        |       |
an orange                                    | orange             |          |        |       |
oranges                                      | oranges            |          |        |       |
three dogs                                   | dogs               |          |        |       |
a polar bear in the snow                     | polar bear in snow |          |        |       |
a castle at night                            | castle at night    |          |        |       |
a red car                                    | car                |          | red    |       |
a red car instead of a blue one              | car                |          | red    | blue  |
a yellow flower                              | flower             |          | yellow |       |
a black and white cat                        | cat                |          | black white | |
a brown bear                                 | brown bear         |          | brown  |       |
a golden retriever                           | golden retriever   |          | yellow |       |
a rose, but not red                          | rose               |          |        | red   |
a dog without a collar                       | dog                | collar   |        |       |
a dog without a collar, on a white background | dog               | collar   |        |       | w
a toucan on a plain background               | toucan             |          |        |       | w
but red                                      |                    |          | red    |       | k
red                                          |                    |          | red    |       | k
the same in yellow                           |                    |          | yellow |       | k
the same but yellow                          |                    |          | yellow |       | k
a red one                                    |                    |          | red    |       | k
a orange one                                 |                    |          | orange |       | k
but orange                                   |                    |          | orange |       | k
make it red                                  |                    |          | red    |       | k
make it gray                                 |                    |          | grey   |       | k
in violet                                    |                    |          | purple |       | k
it should be green                           |                    |          | green  |       | k
not red                                      |                    |          |        | red   | k
not red but blue                             |                    |          | blue   | red   | k
change the colour from red to blue           |                    |          | blue   | red   | k
change its color to white                    |                    |          | white  |       | k
on a white background                        |                    |          |        |       | k w
against a plain backdrop                     |                    |          |        |       | k w
without people                               |                    | people   |        |       | k
no people                                    |                    | people   |        |       | k
I don't want a dog                           |                    | dog      |        |       | k
a dog on the ground                          | dog on ground      |          |        |       |
remove the hat                               |                    | hat      |        |       | k
less snow                                    |                    | snow     |        |       | k
flying                                       | flying             |          |        |       | k
sleeping on a red background                 | sleeping           |          |        |       | k
hugging a tree                               | hugging tree       |          |        |       | k
covered in snow                              | covered in snow    |          |        |       | k
in a forest                                  | forest             |          |        |       | k
in the snow                                  | snow               |          |        |       | k
under water                                  | water              |          |        |       | k
with a red cap                               | cap                |          | red    |       | k
with big ears                                | big ears           |          |        |       | k
add a hat                                    | hat                |          |        |       | k
a dog is added                               | dog                |          |        |       | k
a hat too, added to them                     | hat                |          |        |       | k
a wild one                                   | wild               |          |        |       | k
a wild one in the snow                       | wild in snow       |          |        |       | k
an instrument that one blows                 | instrument blows   |          |        |       |
the same beach at night                      | beach at night     |          |        |       | k
the same animal with stripes                 | stripes            |          |        |       | k
sailing boat                                 | sailing boat       |          |        |       |
a multimeter                                 | multimeter         |          |        |       |
sleepy                                       | sleepy             |          |        |       | k
for fire fighting                            | fire fighting      |          |        |       | k
"""


def rows():
    for line in TABLE.strip().splitlines():
        yield [part.strip() for part in line.split("|")]


def test_the_table_is_long():
    assert len(list(rows())) >= 80


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row[0])
def test_a_sentence_is_read(row):
    text, find, leave, colours, no_colours, flags = row
    reading = read_sentence(text)
    assert reading.find == find
    assert reading.leave == leave
    assert reading.colours == tuple(colours.split())
    assert reading.no_colours == tuple(no_colours.split())
    assert reading.keeps == ("k" in flags)
    assert reading.white_ground == ("w" in flags)
    assert reading.is_usable


@pytest.mark.parametrize("text", ["", "the same", "红色的猫", "собака", "two of them", "?!", "the picture", "bigger"])
def test_a_sentence_that_says_nothing_is_said_so(text):
    reading = read_sentence(text)
    assert not reading.is_usable
    assert reading.told(with_reference=True) == NOTHING


def test_counts_are_told_as_not_used():
    told = read_sentence("three dogs instead of a red cat").told(with_reference=True)
    assert told == "find: dogs; without: cat; not: red; reference: another thing in its place; not used: three"
    assert read_sentence("a dog").told(with_reference=False) == "find: dog"


def test_words_are_found_in_wordnet_by_their_plural_and_commonest_meaning_first():
    assert find_senses("mice") == find_senses("mouse")
    assert find_senses("Mouse".lower())[0].startswith("mouse: any of numerous small rodents")
    assert len(find_senses("mouse")) == 3
    assert find_senses("churches") == find_senses("church")
    assert find_senses("quickly") == ()
    assert head_of("small wooden cup") == "cup"
    assert head_of("very quickly") == ""
