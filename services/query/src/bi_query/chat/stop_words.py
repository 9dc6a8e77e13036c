"""Words of the two languages that any catalogue shares: those that say how something is asked, and those that turn it round.

The first neither speak for a named query nor against it.

Negations (`not`, `sem`), opposites (`worst`, `menos`), comparisons (`versus`) and days by their names (`Saturday`, `Natal`)
are not among them: a match that cannot explain them would answer something else.
"""

from __future__ import annotations

from .words import folded, stems

_PORTUGUESE = """
a o as os um uma uns umas ao aos à às de do da dos das em no na nos nas num numa por pelo pela pelos pelas para pra pro
com e ou que se me nos eu nós a gente você vocês voce lhe meu minha meus minhas nosso nossa nossos nossas seu sua seus suas
este esta estes estas esse essa esses essas isso isto aquele aquela aquilo deste desta desse dessa neste nesta nesse nessa
ele ela eles elas dele dela deles delas entre sobre sob até desde durante já ainda também muito bem aí aqui lá então
ser é são foi foram era eram está estão estava estavam estar esteve estiveram tem têm tinha tinham teve tiveram tivemos temos
há houve haver fica ficam ficou ficaram vai vão vamos ir indo faz fazer feito
qual quais quanto quanta quantos quantas quem como onde quando
qaul quias qauis quanot distribuição
recebeu receberam concedeu concedido concedidos registrou registraram obteve obtiveram atingiu alcançou grande grandes
quero queria queremos gostaria gostaríamos gostava preciso precisamos precisava poderia poderiam pode podem podes podemos
posso consegue conseguem saber ver veja olhar mostre mostra mostrar mostrem exiba exibir liste listar lista diga dizer
diz dá dar dê damos demos deram dei analisar análise análises
 traga trazer traz veio vieram passe passa apresente apresentar apresenta informe informar calcule calcular busque buscar
envie enviar gere gerar obter obtenha encontre encontrar descubra descobrir conte contar ajude ajudar explique
favor obrigado obrigada olá oi ei bom boa prezado prezados
dados número números numero valor valores informação informações relatório relatórios tabela gráfico resultado resultados
pergunta resposta coisa coisas tipo cada todo toda todos todas geral ok pois né mesmo própria próprio
pessoal equipe chefe favorzinho urgente agora atualmente
costuma costumam normalmente geralmente frequentemente habitualmente
aproximadamente talvez dinheiro detalhe detalhes detalhado detalhada inteiro inteira reunião apresentação aba planilha
quebra quebrado aberto único únicos distintos juntamente separado separada
aconteceu acontecendo acontece sendo sido tendo dentro empresa rede
"""
_ENGLISH = """
a an the of in on at by for to from with and or that which what who whom whose how where when this these those it its
is are was were be been being am do does did done has have had having can could would should will shall may might must
i me my we us our ours you your he she they them their there here then also so as if about into over per during
within across between through
much many some any all each every both own other
please kindly thanks thank hello hi hey dear ok okay
show give tell list display present get fetch find see look know want wanted like need let say pull bring make report
provide send print return calculate compute check view take help explain describe analysis analyse analyze
wich whcih waht hwo
received gave given granted recorded reached achieved big large counter balcão área area
usually often frequently typically normally
roughly approximately maybe perhaps went go goes gone got come came away put money lot altogether
chart graph plot diagram breakdown broken detail details detailed full entire whole along throughout unique distinct
boss meeting presentation slide team distribution
data number numbers figure figures value values information info table chart report reports result results question answer
thing things kind sort just right now currently exactly really quick quickly
going happen happened happening s t d m re ve ll lets whats company chain
period período intervalo
"""
STOP_WORDS = stems(folded(_PORTUGUESE + _ENGLISH).split())
# What follows says which part of the data is meant.
_BEFORE_A_PART = "de do da dos das em no na nos nas para por pelo pela com of in on at by for from with"
PREPOSITIONS = frozenset(_BEFORE_A_PART.split())

# Negations, opposites, comparisons and orders to change something.
_TURNING = """
not no never without except excluding exclude besides nor don doesn isn aren didn
não nem nunca sem exceto menos excluindo excluir tirando fora salvo
worst least lowest smallest fewest bottom bad poorest weakest slowest minimum cheapest
pior piores menor menores menos mínimo fracos fraca ruim
delete deletes drop insert update truncate alter remove erase destroy grant revoke modify rename overwrite
apague apagar apaga delete deletar deleta exclua remova remover alterar altere atualize atualizar insira inserir modifique
versus vs
"""
# Questions for a reason, advice or a way to do something, and small talk: no query answers them.
TURNING_PHRASES = (
    "why", "should", "how do i", "how can i", "how should", "how could", "how to", "where can i", "where do i",
    "por que", "porque", "deveria", "deveríamos", "devemos", "devo", "como faço", "como fazer", "como posso", "onde posso",
    "como melhorar", "como aumentar", "como reduzir",
    "what time is it", "what day is it", "how are you", "who are you", "what are you", "what can you do", "your version",
    "que horas são", "que dia é hoje", "quem é você", "o que você faz", "sua versão",
)  # fmt: skip
# Questions for what has not been yet.
FUTURE_PHRASES = (
    "will", "será o", "será a", "qual será", "quanto será", "como será", "quais serão", "quanto serão", "como serão",
    "serão os", "serão as", "vai ser", "vão ser", "vai ter", "vamos ter", "vai haver",
)  # fmt: skip
GOING_TO = frozenset({"vai", "vao", "vamos", "ira", "irao", "iremos"})  # before a verb
TURNING_WORDS = stems(folded(_TURNING).split()) - STOP_WORDS
# Days that no period names. `segunda`, `quarta` and `fall` by themselves may be something else.
CALENDAR_PHRASES = (
    "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "weekend",
    "segunda feira", "às segundas", "nas segundas", "terça", "quarta feira", "às quartas", "nas quartas", "quinta", "sexta",
    "sábado", "domingo", "fim de semana", "fins de semana", "final de semana", "finais de semana", "feira",
    "spring", "summer", "autumn", "winter", "in the fall", "in fall", "this fall", "last fall", "fall season",
    "primavera", "verão", "outono", "inverno",
    "holiday", "vacation", "back to school", "christmas", "xmas", "easter", "halloween", "thanksgiving", "black friday",
    "new year", "valentine", "mother's day", "mothers day", "father's day", "fathers day", "labor day", "labour day",
    "memorial day", "independence day", "super bowl",
    "feriado", "férias", "volta às aulas", "natal", "natalino", "páscoa", "semana santa", "carnaval", "ano novo",
    "réveillon", "dia das mães", "dia dos pais", "dia dos namorados", "dia das crianças", "são joão", "festa junina",
    "véspera",
)  # fmt: skip

_SAME_IN_BOTH = {
    "a",
    "as",
    "no",
    "do",
    "me",
    "so",
    "come",
    "time",
    "s",
    "t",
    "d",
    "m",
    "re",
    "data",
    "sim",
    "total",
    "e",
}
PORTUGUESE_WORDS = frozenset(folded(_PORTUGUESE).split()) - _SAME_IN_BOTH
ENGLISH_WORDS = frozenset(folded(_ENGLISH).split()) - PORTUGUESE_WORDS - _SAME_IN_BOTH
