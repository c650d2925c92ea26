#!/bin/sh
# The executable of every case: plays the script in the file `scenario` beside it, one step per line.
# README.md, "The action's script", explains the steps. Needs a POSIX shell, cat, head, tr and sleep.
# Events are files in the directory whose name is in the file `events`. The executable exits when that
# directory is removed.

PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
[ -f scenario ] || cd "$(dirname "$0")" || exit 69
IFS= read -r events <events
arguments=$# argument=${1-}
line='' count=0

# Adds the number or the arguments of the `run` frame $2 to $text. The order of its members is fixed.
member() {
  case $1 in
    id) number=${2#'{"run":'}; text=$text${number%%,*} ;;
    value) given=${2#*'"value":'}; text=$text${given%',"context":'*} ;;
  esac
}

# Replaces each @…@ in $1 and stores the result in $text.
fill() {
  text='' rest=$1
  while :; do
    case $rest in
      *@*@*) ;;
      *) text=$text$rest; return ;;
    esac
    text=$text${rest%%@*} rest=${rest#*@}
    name=${rest%%@*} rest=${rest#*@}
    case $name in
      line) text=$text$line ;;
      count) text=$text$count ;;
      arg) text=$text$argument ;;
      args) text=$text$arguments ;;
      pid) text=$text$$ ;;
      bytes) text=$text${#line} ;;
      id | value) member "$name" "$line" ;;
      id:* | value:*) eval "member \"\${name%%:*}\" \"\$kept_${name#*:}\"" ;;
      env:*) eval "text=\$text\${${name#env:}-unset}" ;;
      file:*) IFS= read -r inside <"${name#file:}"; text=$text$inside ;;
      fd:*) if ( : >&"${name#fd:}" ) 2>/dev/null; then text=${text}open; else text=${text}closed; fi ;;
      *) echo "actor: no such word: @$name@" >&2; exit 70 ;;
    esac
  done
}

await() {
  until [ -e "$events/$1" ]; do
    [ -d "$events" ] || exit 0
    sleep 0.01 </dev/null
  done
}

step() {
  verb=${1%% *} rest=${1#* }
  case $verb in
    read) IFS= read -r line || { [ -z "$line" ] && finish; }; count=$((count + 1)) ;;
    slurp) line=$(cat); count=$((count + 1)) ;;
    expect) fill "$rest"; [ "$line" = "$text" ] || { echo "actor: expected $text, got $line" >&2; exit 70; } ;;
    holds) case $line in *"$rest"*) ;; *) echo "actor: expected $rest in $line" >&2; exit 70 ;; esac ;;
    keep) eval "kept_$rest=\$line" ;;
    write) fd=${rest%% *}; fill "${rest#* }"; printf '%s\n' "$text" >&"$fd" ;;
    part) fd=${rest%% *}; fill "${rest#* }"; printf '%s' "$text" >&"$fd" ;;
    raw) fd=${rest%% *}; printf '%b' "${rest#* }" >&"$fd" ;;
    repeat)
      fd=${rest%% *} rest=${rest#* }
      head -c "${rest%% *}" /dev/zero | tr '\0' "${rest#* }" >&"$fd"
      ;;
    flood)
      fd=${rest%% *} flooding=$$-$at
      fill "${rest#* }"
      while [ ! -e "$events/$flooding" ] && [ -d "$events" ]; do printf '%s\n' "$text" >&"$fd" || exit; done &
      flood=$!
      ;;
    cease) : >"$events/$flooding"; wait "$flood" ;;
    close) eval "exec $rest>&-" ;;
    raise) fill "$rest"; echo $$ >"$events/$text" ;;
    wait) fill "$rest"; await "$text" ;;
    ending) ending=$rest ;;
    kill) kill -s "$rest" $$ ;;
    exit) exit "$rest" ;;
    unless) word=${rest%% *}; case $line in *"$word"*) ;; *) step "${rest#* }" ;; esac ;;
    on) word=${rest%% *}; case $line in *"$word"*) step "${rest#* }" ;; esac ;;
    loop) from=$at ;;
    *) echo "actor: no such step: $1" >&2; exit 70 ;;
  esac
}

# At the end of input: does the last step and exits.
finish() {
  [ -z "${ending-}" ] || step "$ending"
  exit 0
}

from=''
while :; do
  exec 9<scenario
  at=0
  while IFS= read -r words <&9; do
    at=$((at + 1))
    [ "$at" -gt "${from:-0}" ] && step "$words"
  done
  [ -n "$from" ] || exit 0
done
