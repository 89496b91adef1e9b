"""Word lists for the text generator: names, nouns with their forms, verbs with their forms, facts. Data only.

Every list is ordered and every draw from it is by index, so that a seed fixes the text.
"""

# ruff: noqa: RUF001 - the Greek letters are meant

from __future__ import annotations


def split_words(text: str, separator: str | None = None) -> list[str]:
    """The words of `text`, apart at `separator` or, without one, at white space."""
    return text.split(separator)


def split_rows(text: str, row_separator: str = "\n", field_separator: str = "|") -> list[tuple[str, ...]]:
    """The rows of `text`, each a tuple of its fields."""
    return [tuple(row.split(field_separator)) for row in text.split(row_separator)]


GIRLS = split_words(
    "Anna Mia Lily Emma Sophie Clara Nora Ruth Alice Grace Ella Hannah Julia Kate Lucy Maria Olivia Rosa Sara Tina "
    "Zoe Amy Bella Chloe Daisy Eva Fiona Gina Helen Iris Jane Kim Laura Molly Nina Pam Queenie Rita Stella Tara "
    "Una Vera Wendy Yara Zara Ingrid Leila Priya Aisha Mei Yuki Sofia Elena Freya Greta Hilda Ida Joan Lena Maya "
    "Zoë Renée Chloé Inés Åsa Märta Noémie Łucja Søs Žofia"
)
BOYS = split_words(
    "Tom Ben Sam Max Jack Leo Adam Peter Oscar Henry Noah Paul David Felix George Hugo Ian James Karl Liam Mark Nick "
    "Owen Robert Simon Tim Victor Will Alex Bruno Carl Dan Eric Frank Greg Harry Ivan John Kevin Luke Martin Neil "
    "Omar Philip Ravi Steve Theo Umar Walter Yusuf Zack Kenji Wei Arjun Diego Mateo Otto Pedro Rolf Sven Tariq "
    "José Björn François Jürgen Søren Zoltán Andrés Łukasz Émile Þór"
)
SURNAMES = split_words(
    "Smith Brown Green Hill Wood Baker Miller Carter Fisher Cook Taylor Mason Parker Reed Stone West Young King Bell "
    "Marsh Field Rivers Lake Winter Summers Day Novák García Müller Lindström Okafor Tanaka Silva Rossi Haddad Singh"
)

ANIMALS = split_words(
    "dog cat rabbit fox bear mouse bird duck frog pig cow horse sheep goat squirrel turtle owl hedgehog pony kitten "
    "puppy goose hen lamb parrot penguin monkey lion tiger elephant giraffe zebra wolf deer snail beetle butterfly bee "
    "ant spider crab whale dolphin seal otter beaver badger mole swan robin crow donkey camel koala panda"
)
TOYS = split_words(
    "ball kite drum doll puzzle train boat robot car truck book hat scarf bell whistle balloon marble spoon cup basket "
    "lamp blanket box ring key map coin stone shell feather flute ladder wheel bucket shovel rope umbrella lantern "
    "mirror candle pencil brush button ribbon telescope clock necklace crown mask wagon sled jar bottle backpack"
)
FOODS = split_words(
    "bread soup cheese rice pasta cake pie honey jam butter toast porridge salad pizza chocolate yogurt corn fish "
    "chicken pudding juice milk tea water lemonade cocoa"
)
FRUITS = split_words(
    "apple pear plum peach cherry banana orange lemon grape melon carrot potato tomato onion cookie pancake sandwich "
    "muffin egg nut strawberry mushroom biscuit bun"
)
PLACES = split_words(
    "park|garden|forest|farm|school|library|kitchen|market|beach|river|lake|meadow|barn|village|harbour|museum|"
    "playground|station|bakery|mill|castle|bridge|island|valley|cave|orchard|field|town|shop|zoo|tower|yard|pond|hill",
    "|",
)
ADJECTIVES = split_words(
    "small big red blue green yellow old new shiny soft heavy light round long short bright dark warm cold clean dirty "
    "pretty strange funny quiet loud fast slow strong tiny huge wooden golden silver purple orange white black brown "
    "smooth rough empty broken beautiful special plain striped fluffy"
)
CHARACTER = split_words(
    "kind brave clever shy gentle lazy curious proud honest patient cheerful careful stubborn friendly silly wise "
    "polite busy generous greedy playful thoughtful nervous bold"
)
FEELINGS = split_words(
    "happy sad angry scared tired excited proud lonely surprised hungry thirsty sleepy worried calm bored grateful "
    "nervous jealous confused hopeful sorry relieved"
)
FAMILY_F = ("mother", "grandmother", "sister", "aunt", "teacher", "friend", "neighbour", "cousin")
FAMILY_M = ("father", "grandfather", "brother", "uncle", "teacher", "friend", "neighbour", "cousin")
COLOURS = split_words("red blue green yellow orange purple pink brown black white grey silver golden")

# base, third person, past, -ing
VERBS_INTRANSITIVE = split_rows(
    "run,runs,ran,running jump,jumps,jumped,jumping play,plays,played,playing swim,swims,swam,swimming "
    "sing,sings,sang,singing dance,dances,danced,dancing laugh,laughs,laughed,laughing walk,walks,walked,walking "
    "sleep,sleeps,slept,sleeping read,reads,read,reading draw,draws,drew,drawing climb,climbs,climbed,climbing "
    "smile,smiles,smiled,smiling wait,waits,waited,waiting work,works,worked,working rest,rests,rested,resting "
    "dream,dreams,dreamed,dreaming hide,hides,hid,hiding listen,listens,listened,listening "
    "travel,travels,travelled,travelling paint,paints,painted,painting cook,cooks,cooked,cooking "
    "whistle,whistles,whistled,whistling skip,skips,skipped,skipping",
    " ",
    ",",
)
VERBS_OBJECT = split_rows(
    "find,finds,found,finding take,takes,took,taking carry,carries,carried,carrying drop,drops,dropped,dropping "
    "hold,holds,held,holding lose,loses,lost,losing see,sees,saw,seeing want,wants,wanted,wanting "
    "like,likes,liked,liking share,shares,shared,sharing fix,fixes,fixed,fixing clean,cleans,cleaned,cleaning "
    "buy,buys,bought,buying bring,brings,brought,bringing hide,hides,hid,hiding keep,keeps,kept,keeping "
    "paint,paints,painted,painting make,makes,made,making pull,pulls,pulled,pulling push,pushes,pushed,pushing "
    "borrow,borrows,borrowed,borrowing open,opens,opened,opening wash,washes,washed,washing "
    "throw,throws,threw,throwing catch,catches,caught,catching lift,lifts,lifted,lifting",
    " ",
    ",",
)
HOBBIES = split_words(
    "read books|play football|paint pictures|ride my bike|cook for my family|grow vegetables|swim in the lake|"
    "play the piano|sing in a choir|draw animals|watch birds|build model boats|write short stories|bake bread|"
    "look at the stars|learn languages|climb mountains|take photographs|play chess|walk in the forest|"
    "collect old coins|listen to music|repair clocks|travel by train|dance with my friends|solve puzzles|"
    "play the violin|go fishing|make paper boats|play tennis|learn about the sea|write letters",
    "|",
)
JOBS = split_words(
    "teacher|doctor|baker|farmer|nurse|painter|writer|student|engineer|gardener|pilot|cook|singer|carpenter|"
    "librarian|fisherman|driver|scientist|builder|photographer|shopkeeper|musician|vet|mechanic|tailor|dentist",
    "|",
)

# country|capital|continent|adjective|language; the article, where a country has one, is part of its name
COUNTRIES = split_rows("""France|Paris|Europe|French
Italy|Rome|Europe|Italian
Spain|Madrid|Europe|Spanish
Germany|Berlin|Europe|German
Portugal|Lisbon|Europe|Portuguese
Greece|Athens|Europe|Greek
Poland|Warsaw|Europe|Polish
Austria|Vienna|Europe|Austrian
Hungary|Budapest|Europe|Hungarian
Belgium|Brussels|Europe|Belgian
the Netherlands|Amsterdam|Europe|Dutch
Denmark|Copenhagen|Europe|Danish
Sweden|Stockholm|Europe|Swedish
Norway|Oslo|Europe|Norwegian
Finland|Helsinki|Europe|Finnish
Iceland|Reykjavik|Europe|Icelandic
Ireland|Dublin|Europe|Irish
the United Kingdom|London|Europe|British
Switzerland|Bern|Europe|Swiss
Romania|Bucharest|Europe|Romanian
Bulgaria|Sofia|Europe|Bulgarian
Croatia|Zagreb|Europe|Croatian
Serbia|Belgrade|Europe|Serbian
Slovenia|Ljubljana|Europe|Slovenian
Slovakia|Bratislava|Europe|Slovak
Ukraine|Kyiv|Europe|Ukrainian
Estonia|Tallinn|Europe|Estonian
Latvia|Riga|Europe|Latvian
Lithuania|Vilnius|Europe|Lithuanian
Albania|Tirana|Europe|Albanian
Malta|Valletta|Europe|Maltese
Russia|Moscow|Europe|Russian
Turkey|Ankara|Asia|Turkish
Japan|Tokyo|Asia|Japanese
China|Beijing|Asia|Chinese
India|New Delhi|Asia|Indian
South Korea|Seoul|Asia|Korean
Thailand|Bangkok|Asia|Thai
Vietnam|Hanoi|Asia|Vietnamese
Indonesia|Jakarta|Asia|Indonesian
Malaysia|Kuala Lumpur|Asia|Malaysian
the Philippines|Manila|Asia|Philippine
Nepal|Kathmandu|Asia|Nepalese
Mongolia|Ulaanbaatar|Asia|Mongolian
Pakistan|Islamabad|Asia|Pakistani
Bangladesh|Dhaka|Asia|Bangladeshi
Iran|Tehran|Asia|Iranian
Iraq|Baghdad|Asia|Iraqi
Jordan|Amman|Asia|Jordanian
Lebanon|Beirut|Asia|Lebanese
Saudi Arabia|Riyadh|Asia|Saudi
Qatar|Doha|Asia|Qatari
Cambodia|Phnom Penh|Asia|Cambodian
Laos|Vientiane|Asia|Laotian
Egypt|Cairo|Africa|Egyptian
Morocco|Rabat|Africa|Moroccan
Algeria|Algiers|Africa|Algerian
Tunisia|Tunis|Africa|Tunisian
Kenya|Nairobi|Africa|Kenyan
Ethiopia|Addis Ababa|Africa|Ethiopian
Nigeria|Abuja|Africa|Nigerian
Ghana|Accra|Africa|Ghanaian
Senegal|Dakar|Africa|Senegalese
Uganda|Kampala|Africa|Ugandan
Rwanda|Kigali|Africa|Rwandan
Zambia|Lusaka|Africa|Zambian
Zimbabwe|Harare|Africa|Zimbabwean
Angola|Luanda|Africa|Angolan
Canada|Ottawa|North America|Canadian
the United States|Washington|North America|American
Mexico|Mexico City|North America|Mexican
Cuba|Havana|North America|Cuban
Jamaica|Kingston|North America|Jamaican
Costa Rica|San José|North America|Costa Rican
Brazil|Brasília|South America|Brazilian
Argentina|Buenos Aires|South America|Argentine
Chile|Santiago|South America|Chilean
Peru|Lima|South America|Peruvian
Colombia|Bogotá|South America|Colombian
Ecuador|Quito|South America|Ecuadorian
Uruguay|Montevideo|South America|Uruguayan
Venezuela|Caracas|South America|Venezuelan
Paraguay|Asunción|South America|Paraguayan
Australia|Canberra|Oceania|Australian
New Zealand|Wellington|Oceania|New Zealand
Fiji|Suva|Oceania|Fijian""")
DAYS = split_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split_words("January February March April May June July August September October November December")
SEASON_OF_MONTH = split_words("winter winter spring spring spring summer summer summer autumn autumn autumn winter")
DAYS_IN_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
OPPOSITES = split_rows(
    "hot/cold big/small up/down left/right day/night fast/slow happy/sad old/new open/closed full/empty "
    "hard/soft wet/dry light/dark high/low long/short good/bad early/late rich/poor strong/weak loud/quiet "
    "clean/dirty thick/thin near/far true/false inside/outside black/white easy/difficult wide/narrow "
    "sweet/sour brave/afraid first/last always/never before/after deep/shallow",
    " ",
    "/",
)
# animal|sound|young|home|food|legs
ANIMAL_FACTS = split_rows("""dog|barks|puppy|a kennel|meat|4
cat|meows|kitten|a house|fish|4
cow|moos|calf|a barn|grass|4
horse|neighs|foal|a stable|hay|4
sheep|bleats|lamb|a field|grass|4
pig|grunts|piglet|a sty|vegetables|4
duck|quacks|duckling|a pond|plants and insects|2
hen|clucks|chick|a coop|grain|2
lion|roars|cub|the savanna|meat|4
wolf|howls|pup|the forest|meat|4
frog|croaks|tadpole|a pond|insects|4
bee|buzzes|larva|a hive|nectar|6
owl|hoots|owlet|a hollow tree|mice|2
bear|growls|cub|a den|berries and fish|4
goat|bleats|kid|a shed|leaves and grass|4
elephant|trumpets|calf|the savanna|leaves and fruit|4
mouse|squeaks|pup|a small hole|seeds|4
crow|caws|chick|a nest|seeds and insects|2
goose|honks|gosling|a lake|grass|2
donkey|brays|foal|a stable|hay|4""")
# thing|colour
THING_COLOURS = split_rows(
    "the sky|blue,grass|green,snow|white,coal|black,a ripe banana|yellow,a ripe tomato|red,the sun|yellow,"
    "a lemon|yellow,chocolate|brown,milk|white,blood|red,a carrot|orange,a frog|green,a raven|black,a flamingo|"
    "pink,an elephant|grey,a polar bear|white,a leaf in summer|green,a pumpkin|orange,a plum|purple",
    ",",
    "|",
)
# hello in other languages
GREETINGS = split_rows(
    "French|Bonjour|Merci,Spanish|¡Hola!|Gracias,German|Guten Tag|Danke,Italian|Ciao|Grazie,"
    "Portuguese|Olá|Obrigado,Polish|Dzień dobry|Dziękuję,Czech|Dobrý den|Děkuji,Greek|Γειά σου|Ευχαριστώ,"
    "Russian|Привет|Спасибо,Ukrainian|Привіт|Дякую,Japanese|こんにちは|ありがとう,Chinese|你好|谢谢,Korean|안녕하세요|감사합니다,"
    "Arabic|مرحبا|شكرا,Hebrew|שלום|תודה,Hindi|नमस्ते|धन्यवाद,Turkish|Merhaba|Teşekkürler,Swedish|Hej|Tack,"
    "Danish|Goddag|Tak,Finnish|Hyvää päivää|Kiitos,Icelandic|Góðan dag|Takk,Hungarian|Jó napot|Köszönöm,"
    "Romanian|Bună ziua|Mulțumesc,Vietnamese|Xin chào|Cảm ơn,Thai|สวัสดี|ขอบคุณ,Dutch|Goedendag|Dank je",
    ",",
    "|",
)
EMOJI = split_words("😀 😊 🎉 🌟 🐶 🐱 🌈 🍎 🚀 ❤️ 👍 🌍 🎂 ☀️ 🌧️ 📚 🎵 ⚽ 🐢 🦊")
NUMBERS = split_words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
